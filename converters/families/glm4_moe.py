"""GLM-4.5 and 4.6: DeepSeek-V3's experts and MTP layer behind grouped-query attention that rotates half of a head."""

from converters.config_table import Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION,
    ATTENTION_NORM,
    EMBEDDINGS,
    QK_NORM,
    QKV_BIAS,
    RECOMPUTABLE,
    SHARED,
    changed,
    norm,
)
from converters.families._moe import DENSE_LAYERS, MOE_NORM, expert_bias, experts, router, shared_experts
from converters.families._mtp import MTP_COPIES, mtp
from converters.family import Family
from converters.moe_table import (
    ExpertScale,
    FirstLayersDense,
    Groups,
    NormalisedSigmoid,
    SharedExperts,
    Spelled,
)
from converters.rope_table import Rope

_LAYER = (
    norm(ATTENTION_NORM, "input_layernorm.weight"),
    *ATTENTION,
    QKV_BIAS,
    *QK_NORM,
    *DENSE_LAYERS,
    MOE_NORM,
    router(),
    expert_bias("model.layers.{layer}.mlp.gate.e_score_correction_bias"),
    *experts(),
    *shared_experts("shared_experts"),
)

FAMILY = Family(
    name="glm4_moe",
    architectures=("Glm4MoeForCausalLM",),
    config=(
        *changed(SHARED, Same("rms_norm_eps", "norm_epsilon", default=1e-5), Rope(partial=0.5)),
        HeadSize(),
        KeyValueHeads(default=8),
        Same("attention_bias", "add_qkv_bias", default=False),
        Same("use_qk_norm", "qk_layernorm", default=False),
        Spelled(("n_routed_experts", "num_local_experts"), "num_moe_experts", default=128),
        Same("moe_intermediate_size", "moe_ffn_hidden_size", default=1408),
        Same("num_experts_per_tok", "moe_router_topk", default=8),
        SharedExperts(default=1, size_default=1408),
        FirstLayersDense(default=1),
        NormalisedSigmoid(default=True),
        Groups(groups=1, best=1, ranked_by=2),
        ExpertScale(default=1.0),
        Spelled(("num_nextn_predict_layers", "num_mtp_layers"), "mtp_num_layers", default=1),
        Fixed({"moe_router_enable_expert_bias": True}),
    ),
    rules=(*EMBEDDINGS, *_LAYER),
    mtp=mtp(_LAYER),
    copies=MTP_COPIES,
    recomputable=RECOMPUTABLE,
)
