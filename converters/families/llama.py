"""Llama 2 and 3.x, SmolLM2 and everything else that calls itself LlamaForCausalLM."""

from converters.config_table import Bias, HeadSize, KeyValueHeads
from converters.families._common import CONFIG, DENSE, MLP_BIAS, OUTPUT_BIAS, QKV_BIAS, RECOMPUTABLE
from converters.family import Family

FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    config=(*CONFIG, HeadSize(), KeyValueHeads(), Bias(mlp=True)),
    rules=(*DENSE, QKV_BIAS, OUTPUT_BIAS, *MLP_BIAS),
    recomputable=RECOMPUTABLE,
)
