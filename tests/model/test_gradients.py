"""The gradient of every weight is transformers', for every family on every layout.

Norms alone would not do: swapped or misplaced gradients have the same norm, and Adam hides a wrong scale.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from converters import checkpoint
from tests.model import cases
from tests.model.test_parity import LAYOUTS
from tests.support import tiny
from tests.support.distributed import Workers

TinyModel = Callable[..., Path]


@functools.cache
def expected(folder: Path) -> dict[str, Tensor]:
    """transformers' gradient of the mean loss of the same tokens, by name."""
    from transformers import AutoModelForCausalLM

    tokens = tiny.tokens(checkpoint.read_config(folder)["vocab_size"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits = model(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, dims=1).flatten()).backward()
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", tiny.TINY)
def test_gradients(name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    folder = tiny_model(name)
    world_size, parallel = LAYOUTS[layout]
    tokens = tiny.tokens(checkpoint.read_config(folder)["vocab_size"])
    distributed(cases.gradients, world_size, folder, parallel, tokens, tmp_path / "gradients")
    found = load_file(tmp_path / "gradients" / "model.safetensors")
    assert set(found) == set(expected(folder))
    assert wrong(found, expected(folder)) == []


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


def wrong(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """The weights whose gradient is farther off than 10⁻⁴ of its largest element."""
    return [
        f"{weight}: {difference:.1e} at a largest gradient of {scale:.1e}"
        for weight, gradient in wanted.items()
        for scale in [gradient.abs().max().item()]
        for difference in [(found[weight] - gradient).abs().max().item()]
        if difference > 1e-4 * scale + 1e-7
    ]
