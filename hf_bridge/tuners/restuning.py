"""Res-Tuning (Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone",
arXiv:2310.19859).

A tuner in parallel to an operation of the model, on the same input. With OP attention or the MLP of a layer:

    y = OP(x) + T(x),   T(x) = W_up φ(W_down x + b_down) + b_up   (the paper's Res-Adapter).
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beside import Beside
from hf_bridge.tuners.bottleneck import Bottleneck
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.errors import UserError


@dataclass(kw_only=True)
class ResTuningConfig:
    """Options of Res-Tuning."""

    target_modules: list[str] = field(default_factory=list)
    """Ends of names of the operations; none: attention and MLP of every layer."""

    bottleneck: int = 64
    """Rows of W_down."""

    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """φ."""


class ResTuning(Beside):
    """Bottlenecks in parallel to modules of the model."""

    def __init__(self, model: nn.Module, name: str, config: ResTuningConfig, activation: Activation) -> None:
        chosen = anatomy.targets(model, config.target_modules) if config.target_modules else anatomy.sublayers(model)
        super().__init__(model, name, config, activation)
        for path, module in chosen.items():
            part = Bottleneck(anatomy.width(model), config.bottleneck, config.activation)
            self.add(path, part, module)
            self.after(module, lambda result, given, part=part: result + part(given))

    def merge(self) -> None:
        raise UserError(
            f"`{self.name}` cannot be merged: between a Res-Tuner's two matrices is an activation function,"
            " which no weight of the base can hold.",
            "Keep the tuner beside the model, or tune with `lora`.",
        )


TUNERS = [Tuner("restuning", ResTuningConfig, "arXiv:2310.19859", ResTuning)]
