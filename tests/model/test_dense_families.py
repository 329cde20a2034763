"""Megatron's logits and gradients are transformers', and weights return, for the dense families beyond Llama's kin.

The fast suite has the smallest and the largest layout, `make test-slow` has all.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from converters import checkpoint
from swift_mega.model.logits import transformers_logits
from tests.model import cases
from tests.model.test_gradients import wrong
from tests.model.test_parity import LAYOUTS
from tests.support import tiny, tiny_dense
from tests.support.distributed import Workers

TinyModel = Callable[..., Path]

DENSE_LAYOUTS = [name for name, (_, parallel) in LAYOUTS.items() if "expert_model_parallel_size" not in parallel]
FAST = ("TP1", "TP2xPP2")
EVERY = pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, marks=() if layout in FAST else pytest.mark.slow)
        for name in tiny_dense.MODELS
        for layout in DENSE_LAYOUTS
    ],
)


@functools.cache
def expected(folder: Path) -> tuple[Tensor, Tensor]:
    """Token ids and transformers' logits."""
    tokens = tiny.tokens(checkpoint.read_config(folder)["vocab_size"])
    return tokens, transformers_logits(tiny_dense.reference(folder), tokens)


@EVERY
def test_logits_equal_and_weights_return(
    name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    folder = tiny_model(name)
    tokens, wanted = expected(folder)
    world_size, parallel = LAYOUTS[layout]
    results = distributed(cases.logits_and_round_trip, world_size, folder, parallel, tokens, tmp_path / "back")
    for logits, digest in results:
        assert (logits - wanted).abs().max() <= 1e-4
        assert digest == cases.digest(folder)


@functools.cache
def expected_gradients(folder: Path) -> dict[str, Tensor]:
    """transformers' gradient of the mean loss of the same tokens, by name."""
    from transformers import AutoModelForCausalLM

    tokens = tiny.tokens(checkpoint.read_config(folder)["vocab_size"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    logits = model(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.roll(-1, dims=1).flatten()).backward()
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


@EVERY
def test_gradients(name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    folder = tiny_model(name)
    if tiny_dense.reference(folder) != folder:
        pytest.skip("its tensors are not those of the Llama it is compared with; Llama's gradients are tested")
    world_size, parallel = LAYOUTS[layout]
    tokens = tiny.tokens(checkpoint.read_config(folder)["vocab_size"])
    distributed(cases.gradients, world_size, folder, parallel, tokens, tmp_path / "gradients")
    found = load_file(tmp_path / "gradients" / "model.safetensors")
    assert set(found) == set(expected_gradients(folder))
    assert wrong(found, expected_gradients(folder)) == []
