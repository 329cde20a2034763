"""Fresh weights: the same on every layout, with Megatron's scales."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.model import cases
from tests.model.parity import LAYOUTS
from tests.support.distributed import Workers

TinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def on_one_rank(
    tiny_model: TinyModel, distributed: Workers, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders of fresh weights, by name of the tiny model."""
    made = {}
    for name in ("llama", "qwen2-tied"):
        made[name] = tmp_path_factory.mktemp("random") / name
        distributed(cases.random_weights, 1, tiny_model(name), {}, made[name])
    return made


@pytest.mark.parametrize("layout", ["TP2", "TP2+SP", "PP2", "PP2xVPP2", "TP2xPP2"])
@pytest.mark.parametrize("name", ["llama", "qwen2-tied"])
def test_same_on_every_layout(
    name: str,
    layout: str,
    on_one_rank: dict[str, Path],
    tiny_model: TinyModel,
    distributed: Workers,
    tmp_path: Path,
) -> None:
    world_size, parallel = LAYOUTS[layout]
    digests = distributed(cases.random_weights, world_size, tiny_model(name), parallel, tmp_path / "random")
    assert set(digests) == {cases.digest(on_one_rank[name])}


def test_another_seed_gives_other_weights(
    on_one_rank: dict[str, Path], tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    digests = distributed(cases.random_weights, 1, tiny_model("llama"), {}, tmp_path / "random", seed=2)
    assert digests != [cases.digest(on_one_rank["llama"])]


def test_scales(on_one_rank: dict[str, Path]) -> None:
    """The tiny models ask for 0.2; what adds to the residual stream of 4 layers gets 0.2 / √8."""
    weights = load_file(on_one_rank["qwen2-tied"] / "model.safetensors")
    layers = [weights[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(4)]
    assert weights["model.layers.1.mlp.gate_proj.weight"].std().item() == pytest.approx(0.2, rel=0.1)
    assert weights["model.layers.1.mlp.down_proj.weight"].std().item() == pytest.approx(0.2 / math.sqrt(8), rel=0.1)
    assert weights["model.layers.1.self_attn.q_proj.bias"].abs().max() == 0
    assert (weights["model.layers.1.input_layernorm.weight"] == 1).all()
    assert not (layers[0] == layers[1]).any()
