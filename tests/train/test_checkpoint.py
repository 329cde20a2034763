"""What is looked at before a checkpoint is loaded."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from megatron.core import parallel_state

from swift_mega.base.errors import UserError
from swift_mega.train.checkpoint import Checkpointer
from tests.model import cases
from tests.support.distributed import Workers

CHECKPOINTER = cast(Checkpointer, SimpleNamespace(model_arguments={"num_layers": 4}))


@pytest.mark.parametrize("saved", [{}, {"expert_model_parallel_size": 4}])
def test_another_number_of_expert_ranks_is_refused(saved: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "get_expert_model_parallel_world_size", lambda: 2)
    common = {"args": Namespace(num_layers=4), "progress": {}, **saved}
    before = saved.get("expert_model_parallel_size", 1)
    with pytest.raises(UserError, match=rf"expert_model_parallel_size {before}, this start has 2.*\n.*model\.path=run"):
        Checkpointer._check(CHECKPOINTER, common, Path("run/iter_0000001"))
    Checkpointer._check(CHECKPOINTER, {**common, "expert_model_parallel_size": 2}, Path("run/iter_0000001"))


@pytest.mark.parametrize(
    "layout",
    [
        {"expert_model_parallel_size": 2},
        {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        {"pipeline_model_parallel_size": 2},
    ],
)
def test_room_is_reckoned_for_the_whole_model(
    layout: dict[str, Any], tiny_model: Callable[..., Path], distributed: Workers
) -> None:
    """On every layout as on one rank, experts included; vocabulary and norms are not shared out evenly."""
    folder = tiny_model("qwen3-moe")
    (whole,) = distributed(cases.checkpoint_bytes, 1, folder, {})
    assert distributed(cases.checkpoint_bytes, 2, folder, layout) == [pytest.approx(whole, rel=0.15)] * 2
