"""Qwen2 and Qwen2.5: bias on q, k and v but not on o, a sliding window for some layers."""

from converters.config_table import Fixed, HeadSize, KeyValueHeads
from converters.families._common import CONFIG, DENSE, QKV_BIAS, RECOMPUTABLE
from converters.family import Family
from converters.window_table import WindowByLayer

FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    config=(
        *CONFIG,
        HeadSize(),
        KeyValueHeads(default=32),
        WindowByLayer(),
        Fixed({"add_qkv_bias": True}),
    ),
    rules=(*DENSE, QKV_BIAS),
    recomputable=RECOMPUTABLE,
)
