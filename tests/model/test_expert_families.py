"""Megatron's logits and gradients are transformers', and weights return, for the families with experts and hybrids.

The fast suite has two layouts, `make test-slow` has all.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.model import cases
from tests.model.parity import (
    PP2,
    SP,
    TP2,
    VPP2,
    Layout,
    assert_gradients_equal,
    assert_logits_equal_and_weights_return,
)
from tests.support import tiny_hybrid, tiny_moe
from tests.support.distributed import Workers

TinyModel = Callable[..., Path]

EP2 = {"expert_model_parallel_size": 2}
LAYOUTS: dict[str, Layout] = {
    "TP1": (1, {}),
    "TP2+SP": (2, TP2 | SP),
    "PP2": (2, PP2),
    "PP2xVPP2": (2, PP2 | VPP2),
    "TP2xPP2": (4, TP2 | SP | PP2),
    "EP2": (2, EP2),
    "TP2xEP2": (2, TP2 | SP | EP2 | {"expert_tensor_parallel_size": 1}),
}
FAST = ("TP2xPP2", "EP2")
EVERY = pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, marks=() if layout in FAST else pytest.mark.slow)
        for name in tiny_moe.MODELS | tiny_hybrid.MODELS
        for layout in LAYOUTS
    ],
)


def layout_of(name: str, layout: str) -> Layout:
    """Ranks and sizes of a layout for the model `name`. Experts with biases are not split, but spread."""
    world_size, parallel = LAYOUTS[layout]
    spread = name.startswith("gpt-oss") and "tensor_model_parallel_size" in parallel
    return world_size, parallel | (EP2 | {"expert_tensor_parallel_size": 1} if spread else {})


@EVERY
def test_logits_equal_and_weights_return(
    name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    assert_logits_equal_and_weights_return(tiny_model(name), layout_of(name, layout), distributed, tmp_path / "back")


@EVERY
def test_gradients(name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    assert_gradients_equal(tiny_model(name), layout_of(name, layout), distributed, tmp_path / "gradients")


@pytest.mark.parametrize("name", ["qwen2-moe", "deepseek-v3", "gpt-oss", "qwen3-next"])
def test_fresh_weights_are_the_same_on_every_layout(
    name: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    digests = set()
    for layout in ("TP1", "EP2", "TP2xPP2"):
        world_size, parallel = layout_of(name, layout)
        target = tmp_path / layout
        digests |= set(distributed(cases.random_weights, world_size, tiny_model(name), parallel, target))
    assert len(digests) == 1
    weights = load_file(target / "model.safetensors")
    zero = {key for key in weights if key.endswith(("bias", "sinks"))} - {key for key in weights if "dt_bias" in key}
    assert not any(weights[key].any() for key in zero)
    decays = [(weights[key], weights[key.replace("A_log", "dt_bias")]) for key in weights if key.endswith("A_log")]
    assert all(a.exp().min() >= 1 and a.exp().max() <= 16 and a.unique().numel() > 1 for a, _ in decays)
    assert all((step == 1).all() for _, step in decays)
