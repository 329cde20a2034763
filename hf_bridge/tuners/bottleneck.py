"""The small network that adapters, Res-Tuners and SCEdit's tuners are made of, and what these have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beside import Beside
from swift_mega.base.errors import UserError

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class Bottleneck(nn.Module):
    """T(x) = W_up φ(W_down x + b_down) + b_up, for x of shape [..., width].

    W_up and both biases start at zero: T(x) = 0, and the model at first does what it did without the tuner. (Houlsby
    et al. draw W_up with σ = 0.01: nearly so.) W_down is drawn as Houlsby et al. draw it, normal, σ = 0.01, cut at 2σ.
    """

    def __init__(self, width: int, bottleneck: int, activation: str = "gelu") -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.activation = ACTIVATIONS[activation]()
        self.up = nn.Linear(bottleneck, width)
        nn.init.trunc_normal_(self.down.weight, std=0.01, a=-0.02, b=0.02)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Its weights are in fp32 however few bits the model has.
        return self.up(self.activation(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)  # type: ignore[no-any-return]


@dataclass(kw_only=True)
class BottleneckConfig:
    """Options of tuners that are bottlenecks."""

    bottleneck: int = 64
    """Rows of W_down."""

    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """φ."""


class Bottlenecks(Beside):
    """A bottleneck at some modules of the model, whose T(·) is added to what the module gives back.

    Attributes:
        reads: what T is of: what the module has computed, or what it was given.
        not_linear: why it cannot be merged.
    """

    reads: Literal["result", "given"]
    not_linear: str

    def __init__(self, model: nn.Module, name: str, config: BottleneckConfig, activation: Activation) -> None:
        chosen = self.modules(model, config)
        super().__init__(model, name, config, activation)
        of_result = self.reads == "result"
        for path, module in chosen.items():
            part = Bottleneck(anatomy.width(model), config.bottleneck, config.activation)
            self.add(path, part, module)
            self.after(module, lambda result, given, part=part: result + part(result if of_result else given))

    def modules(self, model: nn.Module, config: BottleneckConfig) -> Mapping[str, nn.Module]:
        """Path → module: those that have a bottleneck."""
        ends = getattr(config, "target_modules", None)
        return anatomy.targets(model, ends) if ends else anatomy.sublayers(model)

    def merge(self) -> None:
        raise UserError(
            f"`{self.name}` cannot be merged: {self.not_linear}.",
            "Keep the tuner beside the model, or tune with `lora`.",
        )
