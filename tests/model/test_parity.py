"""Megatron's logits are transformers', and weights come back byte for byte, for every family on every layout."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from converters import checkpoint
from swift_mega.model.logits import transformers_logits
from tests.model import cases
from tests.model.parity import LAYOUTS, TP2, assert_logits_equal_and_weights_return, expected
from tests.support import tiny
from tests.support.distributed import Workers

TinyModel = Callable[..., Path]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", tiny.TINY)
def test_logits_equal_and_weights_return(
    name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    assert_logits_equal_and_weights_return(tiny_model(name), LAYOUTS[layout], distributed, tmp_path / "back")


@pytest.mark.parametrize("layout", ["TP2", "PP2", "TP2xPP2"])
def test_bf16_weights_return_byte_for_byte(
    layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    folder = tiny_model("qwen3-bias", "bfloat16")
    world_size, parallel = LAYOUTS[layout]
    returned = distributed(cases.round_trip, world_size, folder, parallel, tmp_path / "back", precision="bf16")
    assert set(returned) == {cases.digest(folder)}
    assert checkpoint.read_config(tmp_path / "back")["dtype"] == "bfloat16"


def test_bf16_weights_trained_in_fp32_are_exported_in_fp32(
    tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    folder = tiny_model("qwen3-bias", "bfloat16")
    distributed(cases.round_trip, 1, folder, {}, tmp_path / "back", precision="fp32")
    tokens, wanted = expected(folder)
    assert checkpoint.read_config(tmp_path / "back")["dtype"] == "float32"
    assert torch.equal(transformers_logits(tmp_path / "back", tokens), wanted)


@pytest.mark.parametrize("layout", ["TP1", "TP2+SP", "PP2xVPP2"])
def test_bf16_logits_are_near_transformers_bf16(layout: str, tiny_model: TinyModel, distributed: Workers) -> None:
    """Both round at every step, in another order: as near to one another as transformers' own bf16 is to its fp32."""
    folder = tiny_model("llama", "bfloat16")
    tokens, fp32 = expected(folder)
    rounding = (transformers_logits(folder, tokens, torch.bfloat16) - fp32).abs().mean()
    world_size, parallel = LAYOUTS[layout]
    for logits in distributed(cases.logits, world_size, folder, parallel, tokens, precision="bf16"):
        assert logits.dtype == torch.float32
        assert (logits - fp32).abs().mean() <= 1.5 * rounding


FC1 = "decoder.layers.mlp.linear_fc1.weight"
QKV = "decoder.layers.self_attention.linear_qkv.weight"


@pytest.mark.parametrize(
    ("fault", "key", "order"),
    [("gate and up swapped", FC1, [1, 0]), ("key and value swapped", QKV, [0, 2, 1])],
)
def test_a_wrong_rule_is_found(
    fault: str, key: str, order: list[int], tiny_model: TinyModel, distributed: Workers
) -> None:
    """The parity test can fail: a family with a planted fault is far outside its tolerance."""
    folder = tiny_model("llama")
    tokens, wanted = expected(folder)
    for logits in distributed(cases.logits_with_fault, 2, folder, TP2, tokens, key, order):
        assert (logits - wanted).abs().max() > 0.1, fault
