"""Config tables: both directions agree, transformers' defaults are ours, and what cannot be expressed is refused."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from converters.config_table import MegatronArguments, Yarn
from converters.family import family_of, padded_vocab_size, registry
from converters.missing import MISSING
from swift_mega.base.errors import UserError

from .conftest import BASE, LLAMA3_ROPE, VARIANTS


def llama(**own: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **BASE, **own}


def arguments(config: dict[str, Any]) -> MegatronArguments:
    return family_of(config).megatron_arguments(config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_goes_both_ways(variant: str, hf_model: Callable[[str], Path]) -> None:
    config = json.loads((hf_model(variant) / "config.json").read_text())
    family = family_of(config)
    there = family.megatron_arguments(config)
    assert family.hf_config(there, config) == config
    alone = family.hf_config(there)
    assert family.megatron_arguments(alone) == there
    # transformers must read what was written as the same model.
    ours = getattr(transformers, VARIANTS[variant][0])(**alone)
    assert family.megatron_arguments(json.loads(ours.to_json_string(use_diff=False))) == there


@pytest.mark.parametrize("family", sorted(registry()))
def test_a_table_states_no_argument_twice(family: str) -> None:
    config = llama(architectures=[family], num_key_value_heads=2, num_experts_per_tok=2)
    stated = [name for row in registry()[family].config for name in row.to_megatron(config)]
    assert len(stated) == len(set(stated))
    assert set(stated) <= {field.name for field in dataclasses.fields(MegatronArguments)}


def test_what_a_table_has_no_words_for_is_not_dropped() -> None:
    """An argument that no row of a family writes must have the value that the family's config.json means."""
    plain = arguments(llama())
    with pytest.raises(UserError, match=r"embedding_multiplier=12\.0 cannot be written as this architecture, llama"):
        registry()["LlamaForCausalLM"].hf_config(dataclasses.replace(plain, embedding_multiplier=12.0))


@pytest.mark.parametrize("family", sorted(registry()))
def test_absent_fields_have_the_defaults_of_transformers(family: str) -> None:
    """A sparse config.json, as old repositories have them, means what transformers makes of it."""
    model_type = registry()[family].name
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers does not know {model_type}")
    config_class = transformers.CONFIG_MAPPING[model_type]
    sparse = {
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "architectures": [family],
    }
    full = json.loads(config_class(**sparse).to_json_string(use_diff=False))
    said = ("hidden_size", "intermediate_size", "max_position_embeddings", "vocab_size")
    sparse |= {name: full[name] for name in said if name in full}
    assert arguments(sparse) == arguments(full | {"architectures": [family]})


def test_changed_arguments_change_only_their_fields() -> None:
    base = llama(rope_theta=10000.0, rope_scaling=None, num_key_value_heads=2, custom="kept")
    wanted = arguments(base | {"rope_theta": 500000.0, "vocab_size": 140})
    config = family_of(base).hf_config(wanted, base)
    assert config["custom"] == "kept"
    assert config["vocab_size"] == 140
    assert config["rope_parameters"] == {"rope_theta": 500000.0, "rope_type": "default"}
    assert not {"rope_theta", "rope_scaling"} & set(config)


def test_rope_scaling_in_every_spelling() -> None:
    old = {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}
    long = {"max_position_embeddings": 16384}
    for config in (
        llama(rope_parameters=LLAMA3_ROPE, **long),
        llama(rope_scaling=old, rope_theta=500000.0, **long),
        llama(rope_scaling={"type": old["rope_type"], **old}, rope_theta=500000.0, **long),
    ):
        found = arguments(config)
        assert (found.use_rope_scaling, found.rope_scaling_factor, found.rotary_base) == (True, 32.0, 500000.0)
    dynamic = arguments(llama(rope_scaling={"type": "dynamic", "factor": 2.0}))
    assert (dynamic.missing, dynamic.dynamic_rope_factor, dynamic.rotary_base) == ((), 2.0, 10000.0)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0}
    for config in (llama(rope_parameters=yarn), llama(rope_scaling=yarn | {"attention_factor": 0.1 * math.log(4) + 1})):
        scaled = arguments(config)
        assert (scaled.missing, scaled.yarn) == (
            (),
            Yarn(factor=4.0, original_max_position_embeddings=16, beta_fast=16.0),
        )
    linear = arguments(llama(rope_scaling={"type": "linear", "factor": 4.0}))
    assert (linear.use_rope_scaling, linear.seq_len_interpolation_factor) == (False, 4.0)


def test_bias_of_llama() -> None:
    both = arguments(llama(attention_bias=True, mlp_bias=True))
    assert (both.add_bias_linear, both.add_qkv_bias, both.attention_output_bias) == (True, True, True)
    attention = arguments(llama(attention_bias=True))
    assert (attention.add_bias_linear, attention.add_qkv_bias, attention.attention_output_bias) == (False, True, True)


def test_windows() -> None:
    mistral = {**BASE, "architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
    assert arguments(mistral | {"sliding_window": 16}).window_size == (15, 0)
    assert arguments(mistral | {"sliding_window": None}).window_size is None
    qwen2 = {**BASE, "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 16}
    assert arguments(qwen2).window_size is None
    some = arguments(qwen2 | {"use_sliding_window": True, "max_window_layers": 1})
    assert (some.window_size, some.window_attn_skip_freq) == ((15, 0), [0, 1, 1])
    every = arguments(qwen2 | {"use_sliding_window": True, "max_window_layers": 0})
    assert (every.window_size, every.window_attn_skip_freq) == ((15, 0), None)
    mixed = ["sliding_attention", "full_attention", "sliding_attention"]
    assert arguments(qwen2 | {"use_sliding_window": True, "layer_types": mixed}).window_attn_skip_freq == [1, 0, 1]


QWEN2: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 2}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no factor": ({"rope_scaling": {"type": "linear"}}, "has no `factor`"),
    "rope by layer": ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differs from layer to layer"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5"),
    "mlp bias alone": ({"mlp_bias": True}, "`mlp_bias` is true and `attention_bias` false"),
    "activation": ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "`quantization_config`"),
    "interleaved": ({"rope_interleaved": True}, "`rope_interleaved` is True"),
    "heads": ({"num_key_value_heads": 4}, "num_key_value_heads 4 does not divide num_attention_heads 6"),
    "head size": ({"hidden_size": 50}, "6 heads do not divide hidden_size 50"),
    "words for a number": ({"num_hidden_layers": "three"}, "`num_hidden_layers` is 'three'"),
    "fewer than one": ({"num_hidden_layers": -1}, "`num_hidden_layers` is -1"),
    "half a head": ({"num_key_value_heads": 1.5}, "`num_key_value_heads` is 1.5"),
    "head size in words": ({"head_dim": "16"}, "`head_dim` is '16'"),
    "no finite number": ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` is nan"),
    "a window in words": (QWEN2 | {"sliding_window": "wide"}, "`sliding_window` is 'wide'"),
    "rotary scaling in words": ({"rope_scaling": "yarn"}, "`rope_scaling` is 'yarn'"),
    "missing field": ({"hidden_size": None}, "no `hidden_size`"),
    "window kinds": (QWEN2 | {"layer_types": ["full_attention", "chunked", "chunked"]}, "among them chunked"),
    "window count": (QWEN2 | {"layer_types": ["full_attention"]}, "1 entries for 3 layers"),
    "window off": (QWEN2 | {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window or sliding_window is off"),
}


FOREIGN: dict[str, dict[str, Any]] = {
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}},
    "longrope": {"rope_parameters": {"rope_type": "longrope"}},
    "low": {"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 2.0}},
    "high": {"rope_parameters": LLAMA3_ROPE | {"high_freq_factor": 8.0}},
    "original": {"rope_parameters": LLAMA3_ROPE | {"original_max_position_embeddings": 4096}},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_rotary_scaling_is_kept(case: str) -> None:
    """megatron-core cannot compute it, so the model does not train; weights and config convert all the same."""
    config = llama(**FOREIGN[case])
    there = arguments(config)
    family = family_of(config)
    assert there.missing and set(there.missing) <= set(MISSING)
    assert family.hf_config(there, config) == config
    with pytest.raises(UserError, match=r"missing=.* cannot be written as this architecture, llama"):
        family.hf_config(there)


@pytest.mark.parametrize("case", REFUSED)
def test_what_megatron_cannot_express_is_refused(case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        arguments(llama(**changes))
    assert message in str(error.value)
    assert error.value.fix


def test_arguments_of_another_architecture_are_refused() -> None:
    qwen2 = arguments({**BASE, **QWEN2})
    for architecture in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"):
        with pytest.raises(UserError, match="cannot be written as this architecture"):
            registry()[architecture].hf_config(qwen2)
    windowed = arguments({**BASE, **QWEN2, "use_sliding_window": True, "max_window_layers": 1})
    with pytest.raises(UserError, match="window_attn_skip_freq"):
        registry()["MistralForCausalLM"].hf_config(windowed)


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(UserError) as error:
        family_of({"architectures": ["GPT2LMHeadModel"]})
    assert "GPT2LMHeadModel" in error.value.what
    for architecture in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert architecture in error.value.fix


def test_a_model_type_of_another_family_is_refused() -> None:
    assert family_of({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2"}).name == "deepseek_v3"
    with pytest.raises(UserError, match=r"LlamaForCausalLM \(llama\), but `model_type` is qwen3"):
        family_of(llama(model_type="qwen3"))


def test_model_type_stands_in_for_absent_architectures() -> None:
    assert family_of({"model_type": "qwen3"}).name == "qwen3"


@pytest.mark.parametrize(
    ("vocab", "multiple", "tensor_parallel", "padded"),
    [(131, 128, 1, 256), (128, 128, 1, 128), (49152, 128, 3, 49152), (151936, 128, 8, 152576), (131, 1, 1, 131)],
)
def test_padding(vocab: int, multiple: int, tensor_parallel: int, padded: int) -> None:
    assert padded_vocab_size(vocab, multiple, tensor_parallel) == padded
