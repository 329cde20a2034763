"""The dense families beyond Llama's kin: their config and their tensors, both ways, and what is not trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from converters import checkpoint
from converters.convert import convert
from converters.family import family_of, padded_vocab_size, registry
from converters.missing import MISSING, check_trainable
from converters.stores.safetensors import open_folder
from converters.torch_tensors import to_torch
from converters.view import MegatronView
from swift_mega.base.errors import UserError
from tests.support import tiny_dense

from .both_ways import assert_config_goes_both_ways
from .conftest import BASE
from .reshape import llama_named, load, reshaped

TinyModel = Callable[..., Path]
MODELS = tiny_dense.MODELS | tiny_dense.CONVERTED_ONLY


@pytest.mark.parametrize("name", MODELS)
def test_config_goes_both_ways(name: str, tiny_model: TinyModel) -> None:
    assert_config_goes_both_ways(tiny_model(name))


@pytest.mark.parametrize("name", MODELS)
def test_equals_an_independent_reshaping(name: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(name)
    config = checkpoint.read_config(folder)
    padded = padded_vocab_size(config["vocab_size"])
    view = MegatronView(family_of(config), config, open_folder(folder), padded)
    tensors = llama_named(load(tiny_dense.reference(folder)), config)
    expected = reshaped(tensors, config["num_hidden_layers"], config["num_key_value_heads"], padded)
    assert set(view.tensors) == set(expected)
    for key, tensor in expected.items():
        spec = view.tensors[key]
        assert spec.shape == tuple(tensor.shape), key
        assert torch.equal(to_torch(view.read(key, (0,) * len(spec.shape), spec.shape), spec.dtype), tensor), key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_byte_identical(name: str, dtype: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    source = tiny_model(name, dtype)
    convert(source, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "hf")
    ours, theirs = open_folder(tmp_path / "hf"), open_folder(source)
    assert ours.tensors == theirs.tensors
    for tensor in theirs.tensors:
        assert ours.array(tensor).tobytes() == theirs.array(tensor).tobytes(), tensor
    assert (tmp_path / "hf" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def config_of(architecture: str, **own: Any) -> dict[str, Any]:
    return {**BASE, "architectures": [architecture], "num_key_value_heads": 2, **own}


MINISTRAL3_ROPE = {"rope_type": "yarn", "factor": 16.0, "llama_4_scaling_beta": 0.1}
NOT_TRAINED: dict[str, tuple[dict[str, Any], str]] = {
    "ministral3": (config_of("Ministral3ForCausalLM"), "queries whose size grows with the position"),
    "ministral3 as written": (config_of("Ministral3ForCausalLM", rope_parameters=MINISTRAL3_ROPE), "queries whose"),
    "phi4-mini": (config_of("Phi3ForCausalLM", rope_scaling={"type": "longrope"}), "longrope"),
    "embedding gemma": (config_of("GemmaForCausalLM", use_bidirectional_attention=True), "attention to later tokens"),
    "llama 3 constants": (
        config_of("LlamaForCausalLM", rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}),
        "other constants",
    ),
}


@pytest.mark.parametrize("case", NOT_TRAINED)
def test_what_megatron_lacks_is_named(case: str) -> None:
    config, message = NOT_TRAINED[case]
    arguments = family_of(config).megatron_arguments(config)
    assert set(arguments.missing) <= set(MISSING)
    with pytest.raises(UserError, match=message):
        check_trainable(arguments)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activation": (config_of("GemmaForCausalLM", hidden_act="relu"), "`hidden_act` is 'relu'"),
    "softcap": (config_of("Gemma3ForCausalLM", attn_logit_softcapping=50.0), "`attn_logit_softcapping` is 50.0"),
    "local scaling": (
        config_of("Gemma3ForCausalLM", rope_parameters={"sliding_attention": {"rope_type": "linear", "factor": 2.0}}),
        "`rope_parameters` is not of the form",
    ),
    "bias of the MLP alone": (config_of("NemotronForCausalLM", mlp_bias=True), "`mlp_bias` is true"),
    "bias without that of q, k, v": (config_of("InternLM3ForCausalLM", bias=True), "`bias` is true"),
    "layer types": (config_of("Olmo3ForCausalLM", layer_types=["full_attention"]), "1 entries for 3 layers"),
    "partial rotary": (config_of("Olmo2ForCausalLM", partial_rotary_factor=0.5), "`partial_rotary_factor` is 0.5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_said_is_refused(case: str) -> None:
    config, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        family_of(config).megatron_arguments(config)
    assert message in str(error.value)


def test_one_architecture_does_not_pass_for_another() -> None:
    """Arguments of one family that another family's config.json has no field for."""
    for architecture in ("GemmaForCausalLM", "Glm4ForCausalLM", "Olmo2ForCausalLM", "NemotronForCausalLM"):
        config = config_of(architecture)
        arguments = family_of(config).megatron_arguments(config)
        with pytest.raises(UserError, match="cannot be written as this architecture"):
            registry()["LlamaForCausalLM"].hf_config(arguments)
    granite = config_of("GraniteForCausalLM", residual_multiplier=0.5)
    with pytest.raises(UserError, match=r"(softmax_scale|residual_multiplier)=\S+ cannot be written"):
        registry()["LlamaForCausalLM"].hf_config(family_of(granite).megatron_arguments(granite))


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
OLD_SPELLINGS: dict[str, dict[str, Any]] = {
    "gemma 3 4b": config_of(
        "Gemma3ForCausalLM",
        rope_theta=1_000_000.0,
        rope_local_base_freq=10_000.0,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        sliding_window_pattern=3,
    ),
    "gemma 2": config_of("Gemma2ForCausalLM", hidden_act="gelu_pytorch_tanh", rope_theta=10_000.0, head_dim=16),
    "phi-4": config_of("Phi3ForCausalLM", rope_theta=250_000, rope_scaling=None, partial_rotary_factor=0.75),
    "glm 4": config_of("Glm4ForCausalLM", rope_theta=10_000.0, rope_scaling=None, partial_rotary_factor=0.25),
    "olmo 3": config_of(
        "Olmo3ForCausalLM",
        rope_theta=500_000,
        rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 16},
    ),
    "exaone 4": config_of(
        "Exaone4ForCausalLM",
        max_position_embeddings=131072,
        rope_theta=1_000_000,
        rope_scaling={"rope_type": "llama3", "factor": 16.0, **LLAMA3},
        sliding_window_pattern=2,
    ),
    "minitron": config_of("NemotronForCausalLM", rope_theta=5_000.0, partial_rotary_factor=0.25, norm_eps=1e-6),
    "granite": config_of("GraniteForCausalLM", rope_theta=10_000.0, rope_scaling=None, embedding_multiplier=12),
    "ernie": config_of("Ernie4_5ForCausalLM", rope_theta=1_000_000.0, use_bias=True),
}


@pytest.mark.parametrize("case", OLD_SPELLINGS)
def test_old_spellings_mean_what_transformers_makes_of_them(case: str) -> None:
    old = OLD_SPELLINGS[case]
    family = family_of(old)
    read = transformers.CONFIG_MAPPING[family.name](**old)
    new = json.loads(read.to_json_string(use_diff=False))
    assert family.megatron_arguments(old) == family.megatron_arguments(new)


def test_patterns_of_windows() -> None:
    def flags(architecture: str, **own: Any) -> tuple[Any, Any, Any]:
        config = config_of(architecture, num_hidden_layers=6, sliding_window=8, **own)
        found = family_of(config).megatron_arguments(config)
        return found.window_size, found.window_attn_skip_freq, found.no_rope_freq

    assert flags("Gemma2ForCausalLM") == ((7, 0), [1, 0, 1, 0, 1, 0], None)
    assert flags("Gemma3ForCausalLM") == ((7, 0), [1, 1, 1, 1, 1, 0], None)
    assert flags("Gemma3ForCausalLM", sliding_window_pattern=3) == ((7, 0), [1, 1, 0, 1, 1, 0], None)
    assert flags("Olmo3ForCausalLM") == ((7, 0), [1, 1, 1, 0, 1, 1], None)
    assert flags("MinistralForCausalLM") == ((7, 0), None, None)
    assert flags("Exaone4ForCausalLM") == ((7, 0), [1, 1, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0])
    assert flags("Exaone4ForCausalLM", sliding_window_pattern="LLG") == ((7, 0), [1, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 1])
    assert flags("Exaone4ForCausalLM", layer_types=["full_attention"] * 6) == (None, None, [1] * 6)
