"""Qwen3 with experts: a norm on each query and key head; some layers may be dense."""

from converters.config_table import Bias, Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION,
    ATTENTION_NORM,
    EMBEDDINGS,
    OUTPUT_BIAS,
    QK_NORM,
    QKV_BIAS,
    RECOMPUTABLE,
    SHARED,
    norm,
)
from converters.families._moe import DENSE_LAYERS, MOE_NORM, experts, router
from converters.family import Family
from converters.moe_table import LayersBySteps, Normalised, Spelled, WindowSwitch

FAMILY = Family(
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    config=(
        *SHARED,
        HeadSize(),
        KeyValueHeads(default=4),
        Bias(mlp=False),
        WindowSwitch(),
        Fixed({"qk_layernorm": True}),
        Spelled(("num_experts", "num_local_experts"), "num_moe_experts", default=128),
        Same("moe_intermediate_size", "moe_ffn_hidden_size", default=768),
        Same("num_experts_per_tok", "moe_router_topk", default=8),
        Normalised(False),
        LayersBySteps(),
    ),
    rules=(
        *EMBEDDINGS,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        *ATTENTION,
        *QK_NORM,
        QKV_BIAS,
        OUTPUT_BIAS,
        *DENSE_LAYERS,
        MOE_NORM,
        router(),
        *experts(),
    ),
    recomputable=RECOMPUTABLE,
)
