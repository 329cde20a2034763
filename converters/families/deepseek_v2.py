"""DeepSeek-V2 and V2-Lite: latent attention, a softmax over experts that is not normalised, shared experts."""

from converters.config_table import Fixed, Only, Same
from converters.families._common import EMBEDDINGS, RECOMPUTABLE, SHARED, changed
from converters.families._latent import LATENT_ATTENTION, LATENT_CONFIG
from converters.families._moe import DENSE_LAYERS, MOE_NORM, experts, router, shared_experts
from converters.family import Family
from converters.moe_table import ExpertScale, FirstLayersDense, Groups, SharedExperts, Spelled

FAMILY = Family(
    name="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    config=(
        *changed(SHARED, *LATENT_CONFIG),
        Only("mlp_bias", False, "experts have no bias in megatron-core"),
        Only("scoring_func", "softmax", "scores are softmaxed in this architecture"),
        Spelled(("n_routed_experts", "num_local_experts"), "num_moe_experts", default=64),
        Same("moe_intermediate_size", "moe_ffn_hidden_size", default=1407),
        Same("num_experts_per_tok", "moe_router_topk"),
        SharedExperts(default=2, size_default=1407),
        FirstLayersDense(default=0),
        Groups(groups=None, best=None, ranked_by=1, method="group_limited_greedy"),
        ExpertScale(default=1.0),
        # transformers has `norm_topk_prob` in the config and no use for it.
        Fixed({"moe_router_pre_softmax": True}),
    ),
    rules=(
        *EMBEDDINGS,
        *LATENT_ATTENTION,
        *DENSE_LAYERS,
        MOE_NORM,
        router(),
        *experts(),
        *shared_experts("shared_experts"),
    ),
    recomputable=RECOMPUTABLE,
)
