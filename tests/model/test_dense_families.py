"""Megatron's logits and gradients are transformers', and weights return, for the dense families beyond Llama's kin.

The fast suite has the smallest and the largest layout, `make test-slow` has all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from converters import checkpoint
from converters.family import family_of
from swift_mega.base.errors import UserError
from swift_mega.model import spec
from swift_mega.model.logits import transformers_logits
from tests.model import cases
from tests.model.parity import LAYOUTS, assert_gradients_equal, assert_logits_equal_and_weights_return, expected
from tests.support import tiny, tiny_dense
from tests.support.distributed import Failed, Workers

TinyModel = Callable[..., Path]


def every(*fast: str) -> pytest.MarkDecorator:
    """Every model on every layout, all but those in `fast` in the slow suite."""
    return pytest.mark.parametrize(
        ("name", "layout"),
        [
            pytest.param(name, layout, marks=() if layout in fast else pytest.mark.slow)
            for name in tiny_dense.MODELS
            for layout in LAYOUTS
        ],
    )


@every("TP1", "TP2xPP2")
def test_logits_equal_and_weights_return(
    name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    assert_logits_equal_and_weights_return(tiny_model(name), LAYOUTS[layout], distributed, tmp_path / "back")


@every("TP2xPP2")
def test_gradients(name: str, layout: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    assert_gradients_equal(tiny_model(name), LAYOUTS[layout], distributed, tmp_path / "gradients")


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "norm weights are not stored minus one": ("gemma", {"layernorm_zero_centered_gamma": False}),
    "embeddings are not multiplied": ("gemma", {"embedding_multiplier": 1.0}),
    "another GELU": ("gemma", {"activation": "gelu"}),
    "scores are not capped": ("gemma2", {"attention_softcap": None}),
    "logits are not capped": ("gemma2", {"logits_softcap": None}),
    "scores have the usual scale": ("gemma2", {"softmax_scale": None}),
    "one rotary base for all layers": ("gemma3", {"rotary_local_base": None}),
    "the whole head is rotated": ("phi3", {"rotary_percent": 1.0}),
    "layers add all they compute": ("granite", {"residual_multiplier": 1.0}),
    "logits are not divided": ("granite", {"logits_divisor": 1.0}),
    "rotated by halves": ("glm4", {"rotary_interleaved": False}),
    "all layers have a rotary embedding": ("exaone4", {"no_rope_freq": None}),
    "all layers have a window": ("olmo3", {"window_attn_skip_freq": None}),
    "another activation": ("nemotron", {"activation": "silu"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_forgotten_feature_is_found(fault: str, tiny_model: TinyModel, distributed: Workers) -> None:
    """The parity test can fail: without any one of its features a family is outside the tolerance by far."""
    name, arguments = FAULTS[fault]
    folder = tiny_model(name)
    tokens, wanted = expected(folder)
    (logits,) = distributed(cases.logits_with_arguments, 1, folder, tokens, arguments)
    assert (logits - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "nemotron"])
def test_bf16_logits_are_near_transformers_bf16(name: str, tiny_model: TinyModel, distributed: Workers) -> None:
    """Both round at every step, in another order: as near to one another as transformers' own bf16 is to its fp32."""
    folder = tiny_model(name, "bfloat16")
    tokens, fp32 = expected(folder)
    rounding = (transformers_logits(folder, tokens, torch.bfloat16) - fp32).abs().mean()
    for logits in distributed(cases.logits, 2, folder, LAYOUTS["TP2+SP"][1], tokens, precision="bf16"):
        assert (logits - fp32).abs().mean() <= 1.5 * rounding


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_recomputing_activations_changes_nothing(name: str, tiny_model: TinyModel, distributed: Workers) -> None:
    folder = tiny_model(name)
    tokens, _ = expected(folder)
    ((losses, gradient),) = distributed(cases.token_losses, 1, folder, {}, tokens, attention_dropout=0.3)
    for granularity in ("selective", "full"):
        train = {"recompute_granularity": granularity, "recompute_num_layers": 2}
        ((again, gradient_again),) = distributed(
            cases.token_losses, 1, folder, {}, tokens, train=train, attention_dropout=0.3
        )
        assert torch.equal(losses, again) and torch.equal(gradient, gradient_again)


def test_fresh_norms_only_normalise(tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    """Weights that are stored minus one start at zero."""
    distributed(cases.random_weights, 1, tiny_model("gemma3"), {}, tmp_path / "gemma3")
    distributed(cases.random_weights, 1, tiny_model("nemotron"), {}, tmp_path / "nemotron")
    for name in ("gemma3", "nemotron"):
        weights = load_file(tmp_path / name / "model.safetensors")
        norms = {key: weight for key, weight in weights.items() if "norm" in key}
        assert len(norms) > 8 and not any(weight.any() for weight in norms.values())


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_layers_that_transformer_engine_lacks(name: str, tiny_model: TinyModel) -> None:
    config = checkpoint.read_config(tiny_model(name))
    arguments = family_of(config).megatron_arguments(config)
    assert spec.implementation("auto", arguments) == "local"
    with pytest.raises(UserError, match="which has no norm of what a layer gives back, no "):
        spec.implementation("transformer_engine", arguments)


@pytest.mark.parametrize("name", tiny_dense.CONVERTED_ONLY)
def test_what_megatron_lacks_is_not_built(name: str, tiny_model: TinyModel, distributed: Workers) -> None:
    with pytest.raises(Failed, match="megatron-core's GPT model lacks what this model needs"):
        distributed(cases.logits, 1, tiny_model(name), {}, tiny.tokens(99))
