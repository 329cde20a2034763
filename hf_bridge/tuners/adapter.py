"""Adapter (Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", arXiv:1902.00751).

After attention and after the MLP of every layer, before their results are added to the residual stream:

    h ← h + T(h),   T(h) = W_up φ(W_down h + b_down) + b_up.

The paper also trains the norms; `lora` with `modules_to_save` does that, this does not.
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
class AdapterConfig:
    """Options of adapters."""

    target_modules: list[str] = field(default_factory=list)
    """Ends of names of modules whose result is adapted; none: attention and MLP of every layer."""

    bottleneck: int = 64
    """Rows of W_down."""

    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """φ."""


class Adapter(Beside):
    """Bottlenecks in series with modules of the model."""

    def __init__(self, model: nn.Module, name: str, config: AdapterConfig, activation: Activation) -> None:
        chosen = anatomy.targets(model, config.target_modules) if config.target_modules else anatomy.sublayers(model)
        super().__init__(model, name, config, activation)
        for path, module in chosen.items():
            part = Bottleneck(anatomy.width(model), config.bottleneck, config.activation)
            self.add(path, part, module)
            self.after(module, lambda result, given, part=part: result + part(result))

    def merge(self) -> None:
        raise UserError(
            f"`{self.name}` cannot be merged: between an adapter's two matrices is an activation function,"
            " which no weight of the base can hold.",
            "Keep the adapter beside the model, or tune with `lora`.",
        )


TUNERS = [Tuner("adapter", AdapterConfig, "arXiv:1902.00751", Adapter)]
