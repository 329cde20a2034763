"""The gradient of every weight is transformers', for every family on every layout.

Norms alone would not do: swapped or misplaced gradients have the same norm, and Adam hides a wrong scale.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.model import cases
from tests.model.parity import LAYOUTS, assert_gradients_equal, wrong
from tests.support import tiny
from tests.support.distributed import Workers

TinyModel = Callable[..., Path]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", tiny.TINY)
def test_gradients(name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    assert_gradients_equal(tiny_model(name), LAYOUTS[layout], distributed, tmp_path / "gradients")


def test_an_unguarded_interleaved_pipeline_is_found(
    tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    """A planted fault: with megatron-core's own settings of its sends PP2 × VPP2 computes wrong gradients, silently."""
    folder = tiny_model("llama")
    world_size, parallel = LAYOUTS["PP2xVPP2"]
    tokens = tiny.tokens(101, batch=4)
    unguarded = {"overlap_p2p_comm": False, "batch_p2p_comm": True}
    distributed(cases.gradients, world_size, folder, parallel, tokens, tmp_path / "guarded")
    distributed(cases.gradients, world_size, folder, parallel, tokens, tmp_path / "unguarded", **unguarded)
    guarded = load_file(tmp_path / "guarded" / "model.safetensors")
    assert wrong(load_file(tmp_path / "unguarded" / "model.safetensors"), guarded) != []
