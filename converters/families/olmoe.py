"""OLMoE: experts in every layer, one norm over all query heads, one over all key heads."""

from converters.config_table import Bias, Fixed, HeadSize, KeyValueHeads, Lacking, Same
from converters.families._common import (
    ATTENTION,
    ATTENTION_NORM,
    EMBEDDINGS,
    OUTPUT_BIAS,
    QK_NORM_WHOLE,
    QKV_BIAS,
    RECOMPUTABLE,
    SHARED,
    changed,
    norm,
)
from converters.families._moe import MOE_NORM, experts, router
from converters.family import Family
from converters.moe_table import Normalised, Spelled

FAMILY = Family(
    name="olmoe",
    architectures=("OlmoeForCausalLM",),
    config=(
        *changed(SHARED, Same("rms_norm_eps", "norm_epsilon", default=1e-5)),
        HeadSize(),
        KeyValueHeads(),
        Bias(mlp=False),
        Lacking("clip_qkv", (None,), "clip qkv"),
        Fixed({"qk_layernorm": True, "qk_layernorm_whole": True}),
        Same("intermediate_size", "moe_ffn_hidden_size"),
        Spelled(("num_experts", "num_local_experts"), "num_moe_experts", default=64),
        Same("num_experts_per_tok", "moe_router_topk", default=8),
        Normalised(False),
    ),
    rules=(
        *EMBEDDINGS,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        *ATTENTION,
        *QK_NORM_WHOLE,
        QKV_BIAS,
        OUTPUT_BIAS,
        MOE_NORM,
        router(),
        *experts(),
    ),
    recomputable=RECOMPUTABLE,
)
