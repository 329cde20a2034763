"""DeepSeek-V3 and R1, Moonlight, Kimi-K2: latent attention, sigmoid scores with a bias per expert, groups, MTP."""

from converters.config_table import Fixed, Lacking, Only, Same
from converters.families._common import EMBEDDINGS, RECOMPUTABLE, SHARED, changed
from converters.families._latent import LATENT_ATTENTION, LATENT_CONFIG
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

_LAYER = (
    *LATENT_ATTENTION,
    *DENSE_LAYERS,
    MOE_NORM,
    router(),
    expert_bias("model.layers.{layer}.mlp.gate.e_score_correction_bias"),
    *experts(),
    *shared_experts("shared_experts"),
)

FAMILY = Family(
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    config=(
        *changed(SHARED, *LATENT_CONFIG),
        Lacking("rope_interleave", (True,), "latent halves"),
        Only("scoring_func", "sigmoid", "scores are sigmoids in this architecture"),
        Spelled(("n_routed_experts", "num_local_experts"), "num_moe_experts", default=256),
        Same("moe_intermediate_size", "moe_ffn_hidden_size", default=2048),
        Same("num_experts_per_tok", "moe_router_topk", default=8),
        SharedExperts(default=1, size_default=2048),
        FirstLayersDense(default=3),
        NormalisedSigmoid(default=True),
        Groups(groups=8, best=4, ranked_by=2),
        ExpertScale(default=2.5),
        Spelled(("num_nextn_predict_layers", "num_mtp_layers"), "mtp_num_layers", default=1),
        Fixed({"moe_router_enable_expert_bias": True}),
    ),
    rules=(*EMBEDDINGS, *_LAYER),
    mtp=mtp(_LAYER),
    copies=MTP_COPIES,
    recomputable=RECOMPUTABLE,
)
