"""Ministral: Mistral with a window for some layers."""

from converters.config_table import HeadSize, KeyValueHeads
from converters.families._common import CONFIG, DENSE, RECOMPUTABLE
from converters.family import Family
from converters.window_table import WindowPattern

FAMILY = Family(
    name="ministral",
    architectures=("MinistralForCausalLM",),
    config=(*CONFIG, HeadSize(), KeyValueHeads(default=8), WindowPattern(default=4096)),
    rules=DENSE,
    recomputable=RECOMPUTABLE,
)
