"""Qwen1.5-MoE and Qwen2-MoE: bias on q, k and v, a shared expert with a gate; some layers may be dense."""

from converters.config_table import Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import ATTENTION, ATTENTION_NORM, EMBEDDINGS, QKV_BIAS, RECOMPUTABLE, SHARED, norm
from converters.families._moe import DENSE_LAYERS, MOE_NORM, experts, router, shared_experts, shared_gate
from converters.family import Family
from converters.moe_table import LayersBySteps, Normalised, Spelled
from converters.window_table import WindowByLayer

FAMILY = Family(
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    config=(
        *SHARED,
        HeadSize(),
        KeyValueHeads(default=16),
        WindowByLayer(),
        Same("qkv_bias", "add_qkv_bias", default=True),
        Spelled(("num_experts", "num_local_experts"), "num_moe_experts", default=60),
        Same("moe_intermediate_size", "moe_ffn_hidden_size", default=1408),
        Same("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", default=5632),
        Same("num_experts_per_tok", "moe_router_topk", default=4),
        Fixed({"moe_shared_expert_gate": True}),
        Normalised(False),
        LayersBySteps(),
    ),
    rules=(
        *EMBEDDINGS,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        *ATTENTION,
        QKV_BIAS,
        *DENSE_LAYERS,
        MOE_NORM,
        router(),
        *experts(),
        *shared_experts("shared_expert"),
        shared_gate(),
    ),
    recomputable=RECOMPUTABLE,
)
