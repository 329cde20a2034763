"""Qwen3-Next: three gated delta nets to each gated attention, experts everywhere, one MTP layer.

All norms have weights stored minus one but for that inside a gated delta net, which stays as it is.
"""

import dataclasses

from converters.config_table import Bias, Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION_NORM,
    EMBEDDINGS,
    OUTPUT_BIAS,
    OUTPUT_PROJECTION,
    QK_NORM,
    RECOMPUTABLE,
    SHARED,
    changed,
    in_parts,
    norm,
)
from converters.families._moe import DENSE_LAYERS, MOE_NORM, experts, router, shared_experts, shared_gate
from converters.family import Family
from converters.hybrid_table import LinearLayers, OnlyMtpLayer
from converters.moe_table import LayersBySteps, Normalised, Spelled
from converters.rope_table import Rope
from converters.rules import INTERLEAVE_GATED, HfTensor, Rule, hf

_MEGATRON = "decoder.layers.self_attention."
_LAYER = "model.layers.{layer}."
_HF, _LINEAR = _LAYER + "self_attn.", _LAYER + "linear_attn."


def _linear(megatron: str, name: str, *dimensions: str) -> Rule:
    return Rule(_MEGATRON + megatron, (hf(_LINEAR + name, *dimensions),), layers="linear attention")


_DELTA_NET = (
    dataclasses.replace(
        norm("self_attention.in_proj.layer_norm_weight", "input_layernorm.weight"), layers="linear attention"
    ),
    *in_parts(
        "self_attention.in_proj.weight",
        hf(_LINEAR + "in_proj_qkvz.weight", "linear_qkvz", "hidden"),
        {"query": "linear_key", "key": "linear_key", "value": "linear_value", "z": "linear_value"},
        "linear attention",
        blocks="linear_key_heads",
    ),
    *in_parts(
        "self_attention.in_proj.weight",
        hf(_LINEAR + "in_proj_ba.weight", "linear_ba", "hidden"),
        {"beta": "linear_value_heads", "alpha": "linear_value_heads"},
        "linear attention",
        blocks="linear_key_heads",
    ),
    *in_parts(
        "self_attention.conv1d.weight",
        hf(_LINEAR + "conv1d.weight", "linear_qkv", "one", "linear_kernel"),
        {"query": "linear_key", "key": "linear_key", "value": "linear_value"},
        "linear attention",
    ),
    _linear("A_log", "A_log", "linear_value_heads"),
    _linear("dt_bias", "dt_bias", "linear_value_heads"),
    _linear("out_norm.weight", "norm.weight", "linear_value_head"),
    _linear("out_proj.weight", "out_proj.weight", "hidden", "linear_value"),
)

_ATTENTION = tuple(
    dataclasses.replace(rule, layers="attention")
    for rule in (
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        Rule(
            _MEGATRON + "linear_qkv.weight",
            (
                hf(_HF + "q_proj.weight", "query_gate", "hidden"),
                hf(_HF + "k_proj.weight", "key_value", "hidden"),
                hf(_HF + "v_proj.weight", "key_value", "hidden"),
            ),
            INTERLEAVE_GATED,
        ),
        Rule(
            _MEGATRON + "linear_qkv.bias",
            (
                hf(_HF + "q_proj.bias", "query_gate"),
                hf(_HF + "k_proj.bias", "key_value"),
                hf(_HF + "v_proj.bias", "key_value"),
            ),
            INTERLEAVE_GATED,
            when="add_qkv_bias",
        ),
        OUTPUT_PROJECTION,
        OUTPUT_BIAS,
        *QK_NORM,
    )
)

_MOE = (MOE_NORM, router(), *experts(), *shared_experts("shared_expert"), shared_gate())


def _of_mtp(rule: Rule) -> Rule:
    """The rule of a decoder's layer for the layer of the MTP layer, which is built alike."""
    sources = (HfTensor(source.name.replace(_LAYER, "mtp.layers.{mtp}."), source.dimensions) for source in rule.sources)
    megatron = rule.megatron.replace("decoder.layers.", "mtp.layers.{mtp}.transformer_layer.")
    return dataclasses.replace(rule, megatron=megatron, sources=tuple(sources))


_MTP = (
    Rule("mtp.layers.{mtp}.enorm.weight", (hf("mtp.pre_fc_norm_embedding.weight", "hidden"),)),
    Rule("mtp.layers.{mtp}.hnorm.weight", (hf("mtp.pre_fc_norm_hidden.weight", "hidden"),)),
    Rule("mtp.layers.{mtp}.eh_proj.weight", (hf("mtp.fc.weight", "hidden", "two_hidden"),)),
    Rule("mtp.layers.{mtp}.final_layernorm.weight", (hf("mtp.norm.weight", "hidden"),)),
    *map(_of_mtp, (*_ATTENTION, *_MOE)),
)

FAMILY = Family(
    name="qwen3_next",
    architectures=("Qwen3NextForCausalLM",),
    config=(
        *changed(SHARED, Rope(partial=0.25)),
        HeadSize(default=256),
        KeyValueHeads(default=2),
        Bias(mlp=False),
        LinearLayers(),
        Same("linear_conv_kernel_dim", "linear_conv_kernel_dim", default=4),
        Same("linear_key_head_dim", "linear_key_head_dim", default=128),
        Same("linear_value_head_dim", "linear_value_head_dim", default=128),
        Same("linear_num_key_heads", "linear_num_key_heads", default=16),
        Same("linear_num_value_heads", "linear_num_value_heads", default=32),
        Spelled(("num_experts", "num_local_experts"), "num_moe_experts", default=512),
        Same("moe_intermediate_size", "moe_ffn_hidden_size", default=512),
        Same("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", default=512),
        Same("num_experts_per_tok", "moe_router_topk", default=10),
        Normalised(True),
        LayersBySteps(),
        OnlyMtpLayer(),
        Fixed(
            {
                "qk_layernorm": True,
                "layernorm_zero_centered_gamma": True,
                "attention_output_gate": True,
                "moe_shared_expert_gate": True,
            }
        ),
    ),
    rules=(*EMBEDDINGS, *_DELTA_NET, *_ATTENTION, *DENSE_LAYERS, *_MOE),
    mtp=_MTP,
    recomputable=RECOMPUTABLE,
)
