"""Mistral 7B and its kin: Llama's tensors, one sliding window for all layers."""

from converters.config_table import Fixed, HeadSize, KeyValueHeads, Window
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
        Fixed({"add_bias_linear": False, "add_qkv_bias": False, "attention_output_bias": False}),
    ),
    rules=DENSE,
    recomputable=RECOMPUTABLE,
)
