"""ERNIE 4.5 (dense): heads are rotated by neighbours, and one field gives every linear layer a bias."""

from converters.config_table import Bias, HeadSize, KeyValueHeads, Opposite, Same
from converters.families._common import CONFIG, DENSE, MLP_BIAS, OUTPUT_BIAS, QKV_BIAS, RECOMPUTABLE, changed
from converters.family import Family
from converters.rope_table import Rope

FAMILY = Family(
    name="ernie4_5",
    architectures=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    config=changed(
        CONFIG,
        Same("rms_norm_eps", "norm_epsilon", default=1e-5),
        Opposite("tie_word_embeddings", "untie_embeddings_and_output_weights", default=True),
        HeadSize(default=128),
        KeyValueHeads(default=2),
        Bias(mlp=True, fields=("use_bias", "use_bias", "use_bias")),
        Rope(base=500_000.0, neighbours=True),
    ),
    rules=(*DENSE, QKV_BIAS, OUTPUT_BIAS, *MLP_BIAS),
    recomputable=RECOMPUTABLE,
)
