"""Mistral 7B and its kin: Llama's tensors, one sliding window for all layers."""

from converters.config_table import HeadSize, KeyValueHeads
from converters.families._common import CONFIG, DENSE, RECOMPUTABLE
from converters.family import Family
from converters.window_table import Window

FAMILY = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    config=(
        *CONFIG,
        HeadSize(),
        KeyValueHeads(default=8),
        Window(default=4096),
    ),
    rules=DENSE,
    recomputable=RECOMPUTABLE,
)
