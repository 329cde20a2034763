"""gpt-oss: attention sinks, experts with biases, a clamped gate whose rows take turns with those of up.

All experts of a layer are in one tensor, rows and columns the other way round. What OpenAI published is
in MXFP4; this is what that is decoded to, and what transformers saves.
"""

from converters.config_table import Choice, Fixed, HeadSize, KeyValueHeads, Only, Same
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
from converters.families._moe import MOE_NORM, router
from converters.family import Family
from converters.rope_table import Rope
from converters.rules import DE_INTERLEAVE, TRANSPOSE, TRANSPOSE_DE_INTERLEAVE, Rule, hf
from converters.window_table import WindowPattern

_MLP = "model.layers.{layer}.mlp."
_EXPERTS = "decoder.layers.mlp.experts.experts."

_RULES = (
    Rule(
        "decoder.layers.self_attention.core_attention.softmax_offset",
        (hf("model.layers.{layer}.self_attn.sinks", "heads"),),
    ),
    Rule("decoder.layers.mlp.router.bias", (hf(_MLP + "router.bias", "expert"),)),
    Rule(
        _EXPERTS + "linear_fc1.weight",
        (hf(_MLP + "experts.gate_up_proj", "{expert}", "hidden", "expert_gate_up"),),
        TRANSPOSE_DE_INTERLEAVE,
        fragments=2,
    ),
    Rule(
        _EXPERTS + "linear_fc1.bias",
        (hf(_MLP + "experts.gate_up_proj_bias", "{expert}", "expert_gate_up"),),
        DE_INTERLEAVE,
        fragments=2,
    ),
    Rule(
        _EXPERTS + "linear_fc2.weight",
        (hf(_MLP + "experts.down_proj", "{expert}", "expert_ffn", "hidden"),),
        TRANSPOSE,
    ),
    Rule(_EXPERTS + "linear_fc2.bias", (hf(_MLP + "experts.down_proj_bias", "{expert}", "hidden"),)),
)

FAMILY = Family(
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    config=(
        *changed(
            SHARED,
            Same("rms_norm_eps", "norm_epsilon", default=1e-5),
            Rope(
                base=150000.0,
                absent={
                    "rope_type": "yarn",
                    "factor": 32.0,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "truncate": False,
                    "original_max_position_embeddings": 4096,
                },
            ),
            # The field says what is not so: the gate is x·σ(1.702·x).
            Choice("hidden_act", "activation", {"silu": "quick_gelu"}),
        ),
        HeadSize(default=64),
        KeyValueHeads(default=8),
        WindowPattern(default=128, period=2),
        Only("attention_bias", True, "all linear layers have a bias in this architecture"),
        Same("intermediate_size", "moe_ffn_hidden_size"),
        Same("num_local_experts", "num_moe_experts", default=128),
        Same("num_experts_per_tok", "moe_router_topk", default=4),
        Fixed(
            {
                "add_bias_linear": True,
                "add_qkv_bias": True,
                "attention_output_bias": True,
                "softmax_type": "learnable",
                "glu_linear_offset": 1.0,
                "activation_func_clamp_value": 7.0,
            }
        ),
    ),
    rules=(
        *EMBEDDINGS,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        *ATTENTION,
        QKV_BIAS,
        OUTPUT_BIAS,
        MOE_NORM,
        router("model.layers.{layer}.mlp.router.weight"),
        *_RULES,
    ),
    recomputable=RECOMPUTABLE,
)
