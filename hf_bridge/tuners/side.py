"""Side-Tuning (Zhang et al., "Side-Tuning: A Baseline for Network Adaptation via Additive Side Networks",
arXiv:1912.13503).

A small network S beside the frozen model B, on the same input, whose outputs are blended:

    R(x) = α B(x) + (1 − α) S(x),   α = σ(a) learnt, ½ at the start.

Here x are the embeddings of the tokens, B the model's layers, R(x) what the final norm gets, and S an MLP for every
token by itself, S(x) = W_2 φ(W_1 x + b_1) + b_2. W_2 starts at zero: a norm does not see that all is halved, so the
model at first does what it did (but for the norm's ε). With a frozen model, no gradient goes through it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beside import Beside, PerThread
from hf_bridge.tuners.bottleneck import Bottleneck
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.errors import UserError


@dataclass(kw_only=True)
class SideConfig:
    """Options of Side-Tuning."""

    side_width: int | None = None
    """Rows of W_1. null: as many as a hidden state has numbers."""

    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """φ."""


class Blend(nn.Module):
    """R(x) of x and B(x), both [..., width]."""

    def __init__(self, width: int, config: SideConfig) -> None:
        super().__init__()
        self.side = Bottleneck(width, config.side_width or width, config.activation)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(self.alpha).to(base.dtype)
        return share * base + (1 - share) * self.side(x)  # type: ignore[no-any-return]


class Side(Beside):
    """A network between the model's embeddings and its final norm."""

    def __init__(self, model: nn.Module, name: str, config: SideConfig, activation: Activation) -> None:
        layers, norm = anatomy.layers(model), anatomy.final_norm(model)
        super().__init__(model, name, config, activation)
        self._blend = Blend(anatomy.width(model), config)
        self.add("blend", self._blend, norm)
        self._seen = PerThread()  # of the forward pass that a thread is in
        self.before(next(iter(layers.values())), self._see)
        self.before(norm, lambda hidden: self._blend(self._seen.x.to(hidden.device), hidden))

    def _see(self, hidden: torch.Tensor) -> None:
        self._seen.x = hidden

    def merge(self) -> None:
        raise UserError(
            f"`{self.name}` cannot be merged: it is a network of its own beside the model.",
            "Keep it beside the model, or tune with `lora`.",
        )


TUNERS = [Tuner("side", SideConfig, "arXiv:1912.13503", Side)]
