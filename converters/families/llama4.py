"""Llama 4 (text): experts whose input is scaled, layers without rotation, attention in chunks of the sequence."""

import dataclasses

from converters.config_table import Bias, Choice, Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION,
    ATTENTION_NORM,
    EMBEDDINGS,
    OUTPUT_BIAS,
    QKV_BIAS,
    RECOMPUTABLE,
    SHARED,
    changed,
    norm,
)
from converters.families._moe import DENSE_LAYERS, MOE_NORM, router, shared_experts
from converters.family import Family
from converters.moe_table import ListedLayers, Needs
from converters.rope_table import Rope
from converters.rules import TRANSPOSE, HfTensor, Rule, hf

_MLP, _HERE = "model.layers.{layer}.mlp.", "model.layers.{layer}.feed_forward."
_EXPERTS = "decoder.layers.mlp.experts.experts."


def _in_feed_forward(rule: Rule) -> Rule:
    """The rule with Llama 4's name of the MLP."""
    sources = (HfTensor(source.name.replace(_MLP, _HERE), source.dimensions) for source in rule.sources)
    return dataclasses.replace(rule, sources=tuple(sources))


FAMILY = Family(
    name="llama4_text",
    architectures=("Llama4ForCausalLM",),
    config=(
        *changed(
            SHARED,
            Same("rms_norm_eps", "norm_epsilon", default=1e-5),
            Rope(base=500_000.0, neighbours=True),
            Choice("hidden_act", "activation", {"silu": "silu"}),
            Same("intermediate_size_mlp", "ffn_hidden_size", default=16384),
        ),
        HeadSize(default=128),
        KeyValueHeads(default=8),
        Bias(mlp=False),
        Same("intermediate_size", "moe_ffn_hidden_size"),
        Same("intermediate_size", "moe_shared_expert_intermediate_size"),
        Same("num_local_experts", "num_moe_experts", default=16),
        Same("num_experts_per_tok", "moe_router_topk", default=1),
        ListedLayers(),
        Fixed({"moe_router_score_function": "sigmoid"}),
        Needs("chunked attention"),
    ),
    rules=(
        *EMBEDDINGS,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        *ATTENTION,
        QKV_BIAS,
        OUTPUT_BIAS,
        MOE_NORM,
        *map(_in_feed_forward, (*DENSE_LAYERS, router(_MLP + "router.weight"), *shared_experts("shared_expert"))),
        Rule(
            _EXPERTS + "linear_fc1.weight",
            (hf(_HERE + "experts.gate_up_proj", "{expert}", "hidden", "expert_gate_up"),),
            TRANSPOSE,
            fragments=2,
            layers="moe",
        ),
        Rule(
            _EXPERTS + "linear_fc2.weight",
            (hf(_HERE + "experts.down_proj", "{expert}", "expert_ffn", "hidden"),),
            TRANSPOSE,
            layers="moe",
        ),
    ),
    recomputable=RECOMPUTABLE,
)
