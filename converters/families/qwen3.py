"""Qwen3 (dense): a norm on each query and key head, an explicit head size, optional attention bias."""

from converters.config_table import Bias, Fixed, HeadSize, KeyValueHeads
from converters.families._common import CONFIG, DENSE, OUTPUT_BIAS, QK_NORM, QKV_BIAS, RECOMPUTABLE
from converters.family import Family
from converters.window_table import WindowByLayer

FAMILY = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    config=(
        *CONFIG,
        HeadSize(default=128),
        KeyValueHeads(default=32),
        Bias(mlp=False),
        WindowByLayer(),
        Fixed({"qk_layernorm": True}),
    ),
    rules=(*DENSE, *QK_NORM, QKV_BIAS, OUTPUT_BIAS),
    recomputable=RECOMPUTABLE,
)
