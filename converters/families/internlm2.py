"""InternLM 2 and 2.5: q, k and v lie in one tensor as Megatron has them; names of its own."""

from converters.config_table import Bias, HeadSize, KeyValueHeads
from converters.families._common import (
    ATTENTION_NORM,
    CONFIG,
    EMBEDDING,
    MLP_NORM,
    OUTPUT,
    norm,
)
from converters.family import Family
from converters.rules import CONCATENATE, PAD_VOCABULARY, Rule, hf

_HF = "model.layers.{layer}."
_MEGATRON = "decoder.layers."

FAMILY = Family(
    name="internlm2",
    architectures=("InternLM2ForCausalLM",),
    config=(*CONFIG, HeadSize(), KeyValueHeads(), Bias(mlp=False, fields=("bias", "bias", ""))),
    rules=(
        Rule(EMBEDDING, (hf("model.tok_embeddings.weight", "vocab", "hidden"),), PAD_VOCABULARY),
        norm(ATTENTION_NORM, "attention_norm.weight"),
        Rule(_MEGATRON + "self_attention.linear_qkv.weight", (hf(_HF + "attention.wqkv.weight", "qkv", "hidden"),)),
        Rule(
            _MEGATRON + "self_attention.linear_qkv.bias",
            (hf(_HF + "attention.wqkv.bias", "qkv"),),
            when="add_qkv_bias",
        ),
        Rule(_MEGATRON + "self_attention.linear_proj.weight", (hf(_HF + "attention.wo.weight", "hidden", "query"),)),
        Rule(
            _MEGATRON + "self_attention.linear_proj.bias",
            (hf(_HF + "attention.wo.bias", "hidden"),),
            when="attention_output_bias",
        ),
        norm(MLP_NORM, "ffn_norm.weight"),
        Rule(
            _MEGATRON + "mlp.linear_fc1.weight",
            (hf(_HF + "feed_forward.w1.weight", "ffn", "hidden"), hf(_HF + "feed_forward.w3.weight", "ffn", "hidden")),
            CONCATENATE,
            fragments=2,
        ),
        Rule(_MEGATRON + "mlp.linear_fc2.weight", (hf(_HF + "feed_forward.w2.weight", "hidden", "ffn"),)),
        Rule("decoder.final_layernorm.weight", (hf("model.norm.weight", "hidden"),)),
        Rule(
            OUTPUT,
            (hf("output.weight", "vocab", "hidden"),),
            PAD_VOCABULARY,
            when="untie_embeddings_and_output_weights",
        ),
    ),
    recomputable=("model.layers.{layer}.attention.rotary_emb.inv_freq",),
)
