"""Gemma 3 (text): Gemma 2 with norms of query and key heads instead of soft caps, and rotary bases by kind of layer."""

from converters.config_table import Fixed, Nullable, Only
from converters.families import gemma2
from converters.families._common import QK_NORM, RECOMPUTABLE, changed
from converters.family import Family
from converters.rope_table import RopeByLayer
from converters.window_table import WindowPattern

FAMILY = Family(
    name="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    config=changed(
        gemma2.FAMILY.config,
        RopeByLayer(base=1_000_000.0, local_base=10_000.0),
        WindowPattern(default=4096, period=6),
        Only("attn_logit_softcapping", None, "transformers reads the field and does not apply it"),
        Nullable("final_logit_softcapping", "logits_softcap", default=None),
        Fixed({"qk_layernorm": True}),
    ),
    rules=(*gemma2.FAMILY.rules, *QK_NORM),
    recomputable=RECOMPUTABLE,
)
