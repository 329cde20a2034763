"""Res-Tuning (Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone",
arXiv:2310.19859).

A tuner in parallel to an operation of the model, on the same input. With OP attention or the MLP of a layer:

    y = OP(x) + T(x),   T(x) = W_up φ(W_down x + b_down) + b_up   (the paper's Res-Adapter).
"""

from dataclasses import dataclass, field

from hf_bridge.tuners.bottleneck import BottleneckConfig, Bottlenecks
from hf_bridge.tuners.tuner import Tuner


@dataclass(kw_only=True)
class ResTuningConfig(BottleneckConfig):
    """Options of Res-Tuning."""

    target_modules: list[str] = field(default_factory=list)
    """Ends of names of the operations; none: attention and MLP of every layer."""


class ResTuning(Bottlenecks):
    """Bottlenecks in parallel to modules of the model."""

    reads = "given"
    not_linear = "between a Res-Tuner's two matrices is an activation function, which no weight of the base can hold"


TUNERS = [Tuner("restuning", ResTuningConfig, "arXiv:2310.19859", ResTuning)]
