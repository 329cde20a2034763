"""Adapter (Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", arXiv:1902.00751).

After attention and after the MLP of every layer, before their results are added to the residual stream:

    h ← h + T(h),   T(h) = W_up φ(W_down h + b_down) + b_up.

The paper also trains the norms; `lora` with `modules_to_save` does that, this does not.
"""

from dataclasses import dataclass, field

from hf_bridge.tuners.bottleneck import BottleneckConfig, Bottlenecks
from hf_bridge.tuners.tuner import Tuner


@dataclass(kw_only=True)
class AdapterConfig(BottleneckConfig):
    """Options of adapters."""

    target_modules: list[str] = field(default_factory=list)
    """Ends of names of modules whose result is adapted; none: attention and MLP of every layer."""


class Adapter(Bottlenecks):
    """Bottlenecks in series with modules of the model."""

    reads = "result"
    not_linear = "between an adapter's two matrices is an activation function, which no weight of the base can hold"


TUNERS = [Tuner("adapter", AdapterConfig, "arXiv:1902.00751", Adapter)]
