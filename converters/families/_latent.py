"""Multi-latent attention (MLA) of DeepSeek's models.

Query, key and value are made of latents: `…_a_proj` down to one, `…_b_proj` up to all heads.
"""

from converters.config_table import Nullable, Only, Row, Same
from converters.families._common import norm
from converters.moe_table import LatentHeads, LatentRope
from converters.rules import Rule, hf

_MEGATRON = "decoder.layers.self_attention."
_HF = "model.layers.{layer}.self_attn."

LATENT_CONFIG: tuple[Row, ...] = (
    Nullable("q_lora_rank", "q_lora_rank", 1536),
    Same("kv_lora_rank", "kv_lora_rank", default=512),
    Same("qk_nope_head_dim", "qk_head_dim", default=128),
    Same("qk_rope_head_dim", "qk_pos_emb_head_dim", default=64),
    LatentHeads(default=128),
    LatentRope(),
    Only("attention_bias", False, "the projections to latents have no bias in megatron-core"),
)

LATENT_ATTENTION: tuple[Rule, ...] = (
    norm("input_layernorm.weight", "input_layernorm.weight"),
    Rule(
        _MEGATRON + "linear_q_proj.weight", (hf(_HF + "q_proj.weight", "latent_query", "hidden"),), when="plain_query"
    ),
    Rule(
        _MEGATRON + "linear_q_down_proj.weight",
        (hf(_HF + "q_a_proj.weight", "query_rank", "hidden"),),
        when="q_lora_rank",
    ),
    Rule(
        _MEGATRON + "linear_q_up_proj.layer_norm_weight",
        (hf(_HF + "q_a_layernorm.weight", "query_rank"),),
        when="q_lora_rank",
    ),
    Rule(
        _MEGATRON + "linear_q_up_proj.weight",
        (hf(_HF + "q_b_proj.weight", "latent_query", "query_rank"),),
        when="q_lora_rank",
    ),
    Rule(_MEGATRON + "linear_kv_down_proj.weight", (hf(_HF + "kv_a_proj_with_mqa.weight", "latent", "hidden"),)),
    Rule(_MEGATRON + "linear_kv_up_proj.layer_norm_weight", (hf(_HF + "kv_a_layernorm.weight", "latent_rank"),)),
    Rule(_MEGATRON + "linear_kv_up_proj.weight", (hf(_HF + "kv_b_proj.weight", "latent_key_value", "latent_rank"),)),
    Rule(_MEGATRON + "linear_proj.weight", (hf(_HF + "o_proj.weight", "hidden", "latent_value"),)),
)
