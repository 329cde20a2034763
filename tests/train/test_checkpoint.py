"""What is looked at before a checkpoint is loaded."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from megatron.core import parallel_state

from swift_mega.base.errors import UserError
from swift_mega.train.checkpoint import Checkpointer

CHECKPOINTER = cast(Checkpointer, SimpleNamespace(model_arguments={"num_layers": 4}))


@pytest.mark.parametrize("saved", [{}, {"expert_model_parallel_size": 4}])
def test_another_number_of_expert_ranks_is_refused(saved: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "get_expert_model_parallel_world_size", lambda: 2)
    common = {"args": Namespace(num_layers=4), "progress": {}, **saved}
    before = saved.get("expert_model_parallel_size", 1)
    with pytest.raises(UserError, match=rf"expert_model_parallel_size {before}, this start has 2.*\n.*model\.path=run"):
        Checkpointer._check(CHECKPOINTER, common, Path("run/iter_0000001"))
    Checkpointer._check(CHECKPOINTER, {**common, "expert_model_parallel_size": 2}, Path("run/iter_0000001"))
