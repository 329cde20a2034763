"""Granite: Llama with a multiplier of embeddings, of scores, of what layers add, and a divisor of logits."""

from converters.config_table import Bias, HeadSize, KeyValueHeads, Same
from converters.families._common import CONFIG, DENSE, MLP_BIAS, OUTPUT_BIAS, QKV_BIAS, RECOMPUTABLE
from converters.family import Family

FAMILY = Family(
    name="granite",
    architectures=("GraniteForCausalLM",),
    config=(
        *CONFIG,
        HeadSize(),
        KeyValueHeads(),
        Bias(mlp=True),
        Same("embedding_multiplier", "embedding_multiplier", default=1.0),
        Same("attention_multiplier", "softmax_scale", default=1.0),
        Same("residual_multiplier", "residual_multiplier", default=1.0),
        Same("logits_scaling", "logits_divisor", default=1.0),
    ),
    rules=(*DENSE, QKV_BIAS, OUTPUT_BIAS, *MLP_BIAS),
    recomputable=RECOMPUTABLE,
)
