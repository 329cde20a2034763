"""DeepSeek-V3 and R1, Moonlight, Kimi-K2: latent attention, sigmoid scores with a bias per expert, groups, MTP."""

from converters.config_table import Lacking, Only
from converters.families._common import EMBEDDINGS, RECOMPUTABLE, SHARED, changed
from converters.families._latent import LATENT_ATTENTION, LATENT_CONFIG
from converters.families._moe import DEEPSEEK_MLP, deepseek_config
from converters.families._mtp import MTP_COPIES, mtp
from converters.family import Family

_LAYER = (
    *LATENT_ATTENTION,
    *DEEPSEEK_MLP,
)

FAMILY = Family(
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    config=(
        *changed(SHARED, *LATENT_CONFIG),
        Lacking("rope_interleave", (True,), "latent halves"),
        Only("scoring_func", "sigmoid", "scores are sigmoids in this architecture"),
        *deepseek_config(experts=256, size=2048, dense_layers=3, groups=8, best_groups=4, scale=2.5),
    ),
    rules=(*EMBEDDINGS, *_LAYER),
    mtp=mtp(_LAYER),
    copies=MTP_COPIES,
    recomputable=RECOMPUTABLE,
)
