"""Nemotron and Minitron: LayerNorm with its weight stored minus one, an MLP of squared ReLU without a gate."""

from converters.config_table import Bias, Choice, Fixed, HeadSize, KeyValueHeads, Same
from converters.families._common import (
    ATTENTION,
    CONFIG,
    EMBEDDINGS,
    MLP_UNGATED,
    MLP_UNGATED_BIAS,
    NORM_BIASES,
    NORMS,
    OUTPUT_BIAS,
    QKV_BIAS,
    RECOMPUTABLE,
    changed,
)
from converters.family import Family
from converters.rope_table import Rope

FAMILY = Family(
    name="nemotron",
    architectures=("NemotronForCausalLM",),
    config=changed(
        CONFIG,
        Same("norm_eps", "norm_epsilon", default=1e-5),
        Same("initializer_range", "init_method_std", default=0.0134),
        HeadSize(),
        KeyValueHeads(),
        Bias(mlp=True),
        Rope(partial=0.5),
        Choice("hidden_act", "activation", {"relu2": "squared_relu"}),
        Fixed({"normalization": "LayerNorm", "layernorm_zero_centered_gamma": True, "gated_linear_unit": False}),
    ),
    rules=(
        *EMBEDDINGS,
        *NORMS,
        *NORM_BIASES,
        *ATTENTION,
        *MLP_UNGATED,
        QKV_BIAS,
        OUTPUT_BIAS,
        *MLP_UNGATED_BIAS,
    ),
    recomputable=RECOMPUTABLE,
)
