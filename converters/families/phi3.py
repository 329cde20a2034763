"""Phi-3 and Phi-4-mini: q, k and v in one tensor, gate and up in another, only a part of each head rotated."""

from converters.config_table import HeadSize, KeyValueHeads, Same
from converters.families._common import (
    CONFIG,
    EMBEDDINGS,
    MLP_IN_ONE,
    NORMS,
    OUTPUT_PROJECTION,
    QKV_IN_ONE,
    RECOMPUTABLE,
    changed,
)
from converters.family import Family
from converters.rope_table import Rope
from converters.window_table import Window

FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    config=changed(
        CONFIG,
        Same("rms_norm_eps", "norm_epsilon", default=1e-5),
        HeadSize(),
        KeyValueHeads(),
        Rope(partial=1.0),
        Window(default=None),
    ),
    rules=(*EMBEDDINGS, *NORMS, QKV_IN_ONE, OUTPUT_PROJECTION, *MLP_IN_ONE),
    recomputable=RECOMPUTABLE,
)
