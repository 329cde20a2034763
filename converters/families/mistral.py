"""Mistral 7B and its kin: Llama's tensors, one sliding window for all layers."""

from converters.config_table import NO_BIAS, Fixed, HeadSize, KeyValueHeads, Window
from converters.families._common import CONFIG, DENSE, RECOMPUTABLE
from converters.family import Family

FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    config=(
        *CONFIG,
        HeadSize(),
        KeyValueHeads(default=8),
        Window(default=4096),
        Fixed({**NO_BIAS, "qk_layernorm": False}),
    ),
    rules=DENSE,
    recomputable=RECOMPUTABLE,
)
