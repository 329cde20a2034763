"""OLMo 3: OLMo 2 with a window for three layers of four, which keep the rotary embedding unscaled."""

from converters.families import olmo2
from converters.families._common import RECOMPUTABLE, changed
from converters.family import Family
from converters.rope_table import RopeByLayer
from converters.window_table import WindowPattern

FAMILY = Family(
    name="olmo3",
    architectures=("Olmo3ForCausalLM",),
    config=changed(
        olmo2.FAMILY.config,
        RopeByLayer(base=500_000.0, local_base=500_000.0),
        WindowPattern(default=4096, period=4),
    ),
    rules=olmo2.FAMILY.rules,
    recomputable=RECOMPUTABLE,
)
