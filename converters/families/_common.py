"""What the dense Llama-like families share: the rules for their tensors and most of their config table.

A family's file states what it adds or changes; everything else is here once.
Dimensions: `query` = heads × head size, `key_value` = key-value heads × head size, `head` = head size.
"""

from converters.config_table import NO_EXPERTS, NO_LATENT, Choice, Fixed, Only, Opposite, Row, Same
from converters.quantisation import Quantised
from converters.rope_table import Rope
from converters.rules import (
    CONCATENATE,
    INTERLEAVE_GROUPS,
    INTERLEAVE_ONE,
    PAD_VOCABULARY,
    HfTensor,
    Layers,
    Rule,
    hf,
    take,
)

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_MLP = _LAYER + "mlp."
_MEGATRON = "decoder.layers."

SHARED: tuple[Row, ...] = (
    Same("num_hidden_layers", "num_layers"),
    Same("hidden_size", "hidden_size"),
    Same("intermediate_size", "ffn_hidden_size"),
    Same("num_attention_heads", "num_attention_heads"),
    Same("max_position_embeddings", "max_position_embeddings"),
    Same("vocab_size", "vocab_size"),
    Same("rms_norm_eps", "norm_epsilon", default=1e-6),
    Same("initializer_range", "init_method_std", default=0.02),
    Same("attention_dropout", "attention_dropout", default=0.0),
    Opposite("tie_word_embeddings", "untie_embeddings_and_output_weights", default=False),
    Rope(),
    Choice("hidden_act", "activation", {"silu": "silu"}),
    Quantised(),
    Only("rope_interleaved", False, "the rotation of these families is by halves"),
)

CONFIG: tuple[Row, ...] = (*SHARED, Fixed(NO_EXPERTS), Fixed(NO_LATENT))
"""Of dense families."""


def changed(rows: tuple[Row, ...], *others: Row) -> tuple[Row, ...]:
    """A table in which `others` take the place of the rows about the same fields or the same Megatron argument."""

    def subjects(row: Row) -> set[str]:
        return {*row.fields, f"megatron {getattr(row, 'megatron', row.fields)}"}

    replaced = {subject for row in others for subject in subjects(row)} - {"megatron ()"}
    return (*(row for row in rows if not replaced & subjects(row)), *others)


def norm(megatron: str, name: str) -> Rule:
    """The weight of a layer's norm over the hidden size."""
    return Rule(_MEGATRON + megatron, (hf(_LAYER + name, "hidden"),))


def in_parts(megatron: str, source: HfTensor, parts: dict[str, str], layers: Layers, blocks: str = "one") -> list[Rule]:
    """A tensor that megatron-core stores in parts, each under a key of its own: name of the part → its dimension.

    In the source each of the equal `blocks` of rows consists of a piece of every part.
    """
    lengths = tuple(parts.values())
    return [
        Rule(f"{_MEGATRON}{megatron}.{name}", (source,), take(number, lengths, blocks), layers=layers)
        for number, name in enumerate(parts)
    ]


ATTENTION_NORM = "self_attention.linear_qkv.layer_norm_weight"
ATTENTION_POST_NORM = "self_attention.linear_proj.post_layernorm.weight"
MLP_NORM = "mlp.linear_fc1.layer_norm_weight"
MLP_POST_NORM = "mlp.linear_fc2.post_layernorm.weight"
"""Megatron's names of the norms of a layer: of what attention and MLP read, and (post) of what they give back."""

EMBEDDINGS: tuple[Rule, ...] = (
    Rule(EMBEDDING, (hf("model.embed_tokens.weight", "vocab", "hidden"),), PAD_VOCABULARY),
    Rule("decoder.final_layernorm.weight", (hf("model.norm.weight", "hidden"),)),
    Rule(
        OUTPUT,
        (hf("lm_head.weight", "vocab", "hidden"),),
        PAD_VOCABULARY,
        when="untie_embeddings_and_output_weights",
    ),
)

NORMS: tuple[Rule, ...] = (
    norm(ATTENTION_NORM, "input_layernorm.weight"),
    norm(MLP_NORM, "post_attention_layernorm.weight"),
)

OUTPUT_PROJECTION = Rule(
    _MEGATRON + "self_attention.linear_proj.weight", (hf(_ATTENTION + "o_proj.weight", "hidden", "query"),)
)

ATTENTION: tuple[Rule, ...] = (
    Rule(
        _MEGATRON + "self_attention.linear_qkv.weight",
        (
            hf(_ATTENTION + "q_proj.weight", "query", "hidden"),
            hf(_ATTENTION + "k_proj.weight", "key_value", "hidden"),
            hf(_ATTENTION + "v_proj.weight", "key_value", "hidden"),
        ),
        INTERLEAVE_GROUPS,
    ),
    OUTPUT_PROJECTION,
)

QKV_IN_ONE = Rule(
    _MEGATRON + "self_attention.linear_qkv.weight",
    (hf(_ATTENTION + "qkv_proj.weight", "qkv", "hidden"),),
    INTERLEAVE_ONE,
)

DOWN = Rule(_MEGATRON + "mlp.linear_fc2.weight", (hf(_MLP + "down_proj.weight", "hidden", "ffn"),))

MLP: tuple[Rule, ...] = (
    Rule(
        _MEGATRON + "mlp.linear_fc1.weight",
        (hf(_MLP + "gate_proj.weight", "ffn", "hidden"), hf(_MLP + "up_proj.weight", "ffn", "hidden")),
        CONCATENATE,
        fragments=2,
    ),
    DOWN,
)

MLP_IN_ONE: tuple[Rule, ...] = (
    Rule(_MEGATRON + "mlp.linear_fc1.weight", (hf(_MLP + "gate_up_proj.weight", "gate_up", "hidden"),), fragments=2),
    DOWN,
)
"""Gate and up are one tensor in Hugging Face's files too."""

DENSE: tuple[Rule, ...] = (*EMBEDDINGS, *NORMS, *ATTENTION, *MLP)
"""Llama's."""

POST_NORMS: tuple[Rule, ...] = (
    norm(ATTENTION_POST_NORM, "post_attention_layernorm.weight"),
    norm(MLP_POST_NORM, "post_feedforward_layernorm.weight"),
)
"""Of families that norm what attention and MLP give back; some have a norm before the MLP by another name besides."""

QKV_BIAS = Rule(
    _MEGATRON + "self_attention.linear_qkv.bias",
    (
        hf(_ATTENTION + "q_proj.bias", "query"),
        hf(_ATTENTION + "k_proj.bias", "key_value"),
        hf(_ATTENTION + "v_proj.bias", "key_value"),
    ),
    INTERLEAVE_GROUPS,
    when="add_qkv_bias",
)

OUTPUT_BIAS = Rule(
    _MEGATRON + "self_attention.linear_proj.bias",
    (hf(_ATTENTION + "o_proj.bias", "hidden"),),
    when="attention_output_bias",
)

MLP_BIAS: tuple[Rule, ...] = (
    Rule(
        _MEGATRON + "mlp.linear_fc1.bias",
        (hf(_MLP + "gate_proj.bias", "ffn"), hf(_MLP + "up_proj.bias", "ffn")),
        CONCATENATE,
        when="add_bias_linear",
        fragments=2,
    ),
    Rule(_MEGATRON + "mlp.linear_fc2.bias", (hf(_MLP + "down_proj.bias", "hidden"),), when="add_bias_linear"),
)

MLP_UNGATED: tuple[Rule, ...] = (
    Rule(_MEGATRON + "mlp.linear_fc1.weight", (hf(_MLP + "up_proj.weight", "ffn", "hidden"),)),
    DOWN,
)

MLP_UNGATED_BIAS: tuple[Rule, ...] = (
    Rule(_MEGATRON + "mlp.linear_fc1.bias", (hf(_MLP + "up_proj.bias", "ffn"),), when="add_bias_linear"),
    MLP_BIAS[1],
)

NORM_BIASES: tuple[Rule, ...] = (
    norm("self_attention.linear_qkv.layer_norm_bias", "input_layernorm.bias"),
    norm("mlp.linear_fc1.layer_norm_bias", "post_attention_layernorm.bias"),
    Rule("decoder.final_layernorm.bias", (hf("model.norm.bias", "hidden"),)),
)

QK_NORM: tuple[Rule, ...] = (
    Rule(
        _MEGATRON + "self_attention.q_layernorm.weight",
        (hf(_ATTENTION + "q_norm.weight", "head"),),
        when="qk_layernorm",
    ),
    Rule(
        _MEGATRON + "self_attention.k_layernorm.weight",
        (hf(_ATTENTION + "k_norm.weight", "head"),),
        when="qk_layernorm",
    ),
)

QK_NORM_WHOLE: tuple[Rule, ...] = (
    Rule(_MEGATRON + "self_attention.q_layernorm.weight", (hf(_ATTENTION + "q_norm.weight", "query"),)),
    Rule(_MEGATRON + "self_attention.k_layernorm.weight", (hf(_ATTENTION + "k_norm.weight", "key_value"),)),
)
"""One norm over all query heads together, one over all key heads."""

RECOMPUTABLE = (
    "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
)
"""Buffers of old files that the config already determines; a conversion leaves them out and says so."""
