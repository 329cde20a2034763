"""Quantisation-aware training rounds as the quantised model does, and trains the exact weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_bridge.models.config import LoadingConfig
from hf_bridge.models.linear import linear_names
from hf_bridge.models.load import load_model
from hf_bridge.models.qat import QAT, convert_qat, prepare_qat
from swift_mega.base.errors import UserError

TOKENS = torch.arange(20)[None]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


@pytest.mark.parametrize("name", QAT)
def test_converted_and_loaded_it_computes_what_was_trained(folder: Path, tmp_path: Path, name: str) -> None:
    loaded = load_model(str(folder), LoadingConfig(qat=name))
    names = [key for key, _ in loaded.model.named_parameters()]
    assert names == [key for key, _ in load_model(str(folder)).model.named_parameters()]
    optimizer = torch.optim.SGD(loaded.model.parameters(), lr=0.1)
    loaded.model(TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in loaded.model.parameters())
    optimizer.step()
    trained = logits(loaded.model)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert not torch.allclose(trained, logits(load_model(str(tmp_path)).model), atol=1e-3)
    torch.testing.assert_close(logits(load_model(str(tmp_path), LoadingConfig(quantization=name)).model), trained)
    convert_qat(loaded.model, name)
    layer = loaded.model.get_submodule("model.layers.0.mlp.up_proj")
    assert type(layer).__name__ in ("Linear4bit", "HQQLinear") or type(layer.weight).__name__.endswith("Int8Tensor")
    torch.testing.assert_close(logits(loaded.model), trained)


def test_torchao_rounds_by_the_formula(folder: Path) -> None:
    """Weights to int4, symmetric, a scale for 32 of a row; activations to int8, asymmetric, a scale for each token."""
    plain, model = load_model(str(folder)).model, load_model(str(folder), LoadingConfig(qat="torchao-int8-int4")).model
    path = "model.layers.0.mlp.up_proj"
    layer, x = model.get_submodule(path), torch.randn(3, 64)
    weight = plain.get_submodule(path).weight.detach().view(-1, 32)
    scale = weight.abs().amax(1, True) / 7.5
    # Times the inverse: the largest of each group lies between two steps, where the last bit decides.
    rounded = (torch.clamp((weight * (1 / scale)).round(), -8, 7) * scale).view(128, 64)
    low, high = x.amin(1, True).clamp(max=0), x.amax(1, True).clamp(min=0)
    step = (high - low) / 255
    zero = (-128 - (low / step).round()).clamp(-128, 127)
    x_rounded = (((x / step).round() + zero).clamp(-128, 127) - zero) * step
    torch.testing.assert_close(layer(x), F.linear(x_rounded, rounded))


def test_it_rounds_with_torchaos_own_fake_quantisers(folder: Path) -> None:
    from torchao.quantization.qat import FakeQuantizedLinear

    model = load_model(str(folder), LoadingConfig(qat="torchao-int8-int4")).model
    layers = [model.get_submodule(path) for path in linear_names(model)]
    assert len(layers) == 14 and {type(layer) for layer in layers} == {FakeQuantizedLinear}
    assert type(model.lm_head) is torch.nn.Linear


def test_the_gradient_passes_straight_through(folder: Path) -> None:
    model = load_model(str(folder), LoadingConfig(qat="bnb-nf4")).model
    layer, x = model.get_submodule("model.layers.0.mlp.up_proj"), torch.randn(3, 64)
    y = layer(x)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(128, 64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bnb-int8", "rounds activations"),
        ("eetq", "kernels for GPUs"),
        ("bnb-nf5", "did you mean `bnb-nf4`"),
    ],
)
def test_what_cannot_be(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(str(folder), LoadingConfig(qat=name))


def test_groups_that_do_not_fit(tiny_model: Callable[..., Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    with pytest.raises(UserError, match=r"every 32 weights, and model\.layers\.0\.mlp\.down_proj 48 inputs"):
        prepare_qat(model, "torchao-int8-int4")
