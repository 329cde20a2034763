"""GLM-4-0414: norms before and after attention and MLP, half of each head rotated, by neighbours."""

from converters.config_table import Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION,
    ATTENTION_POST_NORM,
    CONFIG,
    EMBEDDINGS,
    MLP_IN_ONE,
    MLP_POST_NORM,
    NORMS,
    QKV_BIAS,
    RECOMPUTABLE,
    changed,
    norm,
)
from converters.family import Family
from converters.rope_table import Rope

FAMILY = Family(
    name="glm4",
    architectures=("Glm4ForCausalLM",),
    config=changed(
        CONFIG,
        Same("rms_norm_eps", "norm_epsilon", default=1.5625e-07),
        HeadSize(default=128),
        KeyValueHeads(default=2),
        Same("attention_bias", "add_qkv_bias", default=True),
        Rope(partial=0.5, neighbours=True),
        Fixed({"norm_placement": "both"}),
    ),
    rules=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        *MLP_IN_ONE,
        norm(ATTENTION_POST_NORM, "post_self_attn_layernorm.weight"),
        norm(MLP_POST_NORM, "post_mlp_layernorm.weight"),
        QKV_BIAS,
    ),
    recomputable=RECOMPUTABLE,
)
