"""OLMo 2: norms only on what attention and MLP give back, and one over all query heads, one over all key heads."""

from converters.config_table import Bias, Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION,
    CONFIG,
    EMBEDDINGS,
    MLP,
    OUTPUT_BIAS,
    POST_NORMS,
    QK_NORM_WHOLE,
    QKV_BIAS,
    RECOMPUTABLE,
    changed,
)
from converters.family import Family

FAMILY = Family(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    config=changed(
        CONFIG,
        Same("rms_norm_eps", "norm_epsilon", default=1e-5),
        HeadSize(),
        KeyValueHeads(),
        Bias(mlp=False),
        Fixed({"norm_placement": "post", "qk_layernorm": True, "qk_layernorm_whole": True}),
    ),
    rules=(*EMBEDDINGS, *ATTENTION, *MLP, *POST_NORMS, *QK_NORM_WHOLE, QKV_BIAS, OUTPUT_BIAS),
    recomputable=RECOMPUTABLE,
)
