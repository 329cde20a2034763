"""InternLM 3: Llama's tensors; one field for the bias of q, k and v, one for all other biases."""

from converters.config_table import Bias, HeadSize, KeyValueHeads
from converters.families._common import CONFIG, DENSE, MLP_BIAS, OUTPUT_BIAS, QKV_BIAS, RECOMPUTABLE
from converters.family import Family

FAMILY = Family(
    name="internlm3",
    architectures=("InternLM3ForCausalLM",),
    config=(*CONFIG, HeadSize(), KeyValueHeads(), Bias(mlp=True, fields=("qkv_bias", "bias", "bias"))),
    rules=(*DENSE, QKV_BIAS, OUTPUT_BIAS, *MLP_BIAS),
    recomputable=RECOMPUTABLE,
)
