"""GLM-4.5 and 4.6: DeepSeek-V3's experts and MTP layer behind grouped-query attention that rotates half of a head."""

from converters.config_table import HeadSize, KeyValueHeads, Same
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
from converters.families._moe import DEEPSEEK_MLP, deepseek_config
from converters.families._mtp import MTP_COPIES, mtp
from converters.family import Family
from converters.rope_table import Rope

_LAYER = (
    norm(ATTENTION_NORM, "input_layernorm.weight"),
    *ATTENTION,
    QKV_BIAS,
    *QK_NORM,
    *DEEPSEEK_MLP,
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
        *deepseek_config(experts=128, size=1408, dense_layers=1, groups=1, best_groups=1, scale=1.0),
    ),
    rules=(*EMBEDDINGS, *_LAYER),
    mtp=mtp(_LAYER),
    copies=MTP_COPIES,
    recomputable=RECOMPUTABLE,
)
