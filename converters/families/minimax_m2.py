"""MiniMax-M2: sigmoid scores with a bias per expert, one norm over all query heads, one over all key heads."""

from converters.config_table import Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION,
    ATTENTION_NORM,
    EMBEDDINGS,
    QK_NORM_WHOLE,
    RECOMPUTABLE,
    SHARED,
    changed,
    norm,
)
from converters.families._moe import MOE_NORM, expert_bias, experts, router
from converters.family import Family
from converters.moe_table import NormalisedSigmoid, RopeOfSize

_MOE = "model.layers.{layer}.block_sparse_moe."

FAMILY = Family(
    name="minimax_m2",
    architectures=("MiniMaxM2ForCausalLM",),
    config=(
        *changed(SHARED, RopeOfSize(base=5_000_000.0, partial=1.0)),
        HeadSize(default=128),
        KeyValueHeads(default=8),
        Fixed({"qk_layernorm": True, "qk_layernorm_whole": True, "moe_router_enable_expert_bias": True}),
        Same("intermediate_size", "moe_ffn_hidden_size"),
        Same("num_local_experts", "num_moe_experts", default=256),
        Same("num_experts_per_tok", "moe_router_topk", default=8),
        NormalisedSigmoid(default=None),
    ),
    rules=(
        *EMBEDDINGS,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        *ATTENTION,
        *QK_NORM_WHOLE,
        MOE_NORM,
        router(_MOE + "gate.weight"),
        expert_bias(_MOE + "e_score_correction_bias"),
        *experts(_MOE, gate="w1", up="w3", down="w2"),
    ),
    recomputable=RECOMPUTABLE,
)
