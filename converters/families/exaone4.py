"""EXAONE 4: norms only on what attention and MLP give back; layers without a window have no rotary embedding."""

from converters.config_table import Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION,
    CONFIG,
    EMBEDDINGS,
    MLP,
    POST_NORMS,
    QK_NORM,
    RECOMPUTABLE,
    changed,
)
from converters.family import Family
from converters.window_table import WindowPattern

FAMILY = Family(
    name="exaone4",
    architectures=("Exaone4ForCausalLM",),
    config=changed(
        CONFIG,
        Same("rms_norm_eps", "norm_epsilon", default=1e-5),
        HeadSize(),
        KeyValueHeads(default=32),
        WindowPattern(default=4096, period=4, rope_in_window_only=True),
        Fixed({"norm_placement": "post", "qk_layernorm": True}),
    ),
    rules=(*EMBEDDINGS, *ATTENTION, *MLP, *POST_NORMS, *QK_NORM),
    recomputable=RECOMPUTABLE,
)
