"""Qwen2 and Qwen2.5: bias on q, k and v but not on o, a sliding window for some layers."""

from converters.config_table import Fixed, HeadSize, KeyValueHeads, WindowByLayer
from converters.families._common import CONFIG, DENSE, QKV_BIAS, RECOMPUTABLE
from converters.family import Family

FAMILY = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    config=(
        *CONFIG,
        HeadSize(),
        KeyValueHeads(default=32),
        WindowByLayer(),
        Fixed({"add_bias_linear": False, "add_qkv_bias": True, "attention_output_bias": False}),
    ),
    rules=(*DENSE, QKV_BIAS),
    recomputable=RECOMPUTABLE,
)
