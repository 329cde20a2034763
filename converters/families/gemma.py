"""Gemma 1: norm weights stored minus one, embeddings times √hidden, a GELU gate."""

from converters.config_table import Bias, Choice, EmbeddingTimesRoot, Fixed, HeadSize, KeyValueHeads, Lacking, Opposite
from converters.families._common import CONFIG, DENSE, OUTPUT_BIAS, QKV_BIAS, RECOMPUTABLE, changed
from converters.family import Family

FAMILY = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    config=changed(
        CONFIG,
        Choice("hidden_act", "activation", {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}),
        Opposite("tie_word_embeddings", "untie_embeddings_and_output_weights", default=True),
        HeadSize(default=256),
        KeyValueHeads(default=16),
        Bias(mlp=False),
        EmbeddingTimesRoot(),
        Lacking("use_bidirectional_attention", (None, False), "bidirectional attention"),
        Fixed({"layernorm_zero_centered_gamma": True}),
    ),
    rules=(*DENSE, QKV_BIAS, OUTPUT_BIAS),
    recomputable=RECOMPUTABLE,
)
