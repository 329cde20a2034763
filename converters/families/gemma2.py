"""Gemma 2: Gemma with norms before and after attention and MLP, soft caps, and a window in every other layer."""

from converters.config_table import Choice, Fixed, KeyValueHeads, Nullable, QueryScalar
from converters.families import gemma
from converters.families._common import (
    ATTENTION,
    ATTENTION_NORM,
    EMBEDDINGS,
    MLP,
    MLP_NORM,
    OUTPUT_BIAS,
    POST_NORMS,
    QKV_BIAS,
    RECOMPUTABLE,
    changed,
    norm,
)
from converters.family import Family
from converters.window_table import WindowPattern

FAMILY = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    config=changed(
        gemma.FAMILY.config,
        Choice("hidden_activation", "activation", {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}),
        KeyValueHeads(default=4),
        QueryScalar(),
        WindowPattern(default=4096, period=2),
        Nullable("attn_logit_softcapping", "attention_softcap", default=50.0),
        Nullable("final_logit_softcapping", "logits_softcap", default=30.0),
        Fixed({"norm_placement": "both"}),
    ),
    rules=(
        *EMBEDDINGS,
        *ATTENTION,
        *MLP,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        norm(MLP_NORM, "pre_feedforward_layernorm.weight"),
        *POST_NORMS,
        QKV_BIAS,
        OUTPUT_BIAS,
    ),
    recomputable=RECOMPUTABLE,
)
