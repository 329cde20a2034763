"""Res-Tuning-Bypass (Jiang et al., "Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from
Backbone", arXiv:2310.19859).

A narrow network beside the frozen model, which reads the hidden states x_0 … x_N before, between and behind the
model's layers and never writes to them. Its last state is what the final norm and the head get:

    b_0 = x_0,   b_l = λ_l R_l(x_l) + (1 − λ_l) V_l(b_{l−1}),   l = 1 … N,

with R_l (horizontal) and V_l (vertical) Res-Tuners R(x) = x + W_up φ(W_down x + b_down) + b_up, and λ_l = σ(s_l)
learnt. The x_l are detached: no gradient goes through the model, and none of its activations is kept for one.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beside import Beside, PerThread
from hf_bridge.tuners.bottleneck import Bottleneck
from hf_bridge.tuners.side import Side
from hf_bridge.tuners.tuner import Attached, Tuner
from swift_mega.base.errors import UserError


@dataclass(kw_only=True)
class BypassConfig:
    """Options of Res-Tuning-Bypass."""

    bottleneck: int = 64
    """Rows of W_down."""

    gate: float = 0.5
    """λ at the start, the same in all layers. Near 1, the model at first does nearly what it did."""

    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """φ."""


class Step(nn.Module):
    """One step of the bypass: b_l of x_l and b_{l−1}, all [..., width]."""

    def __init__(self, width: int, config: BypassConfig) -> None:
        super().__init__()
        self.horizontal = Bottleneck(width, config.bottleneck, config.activation)
        self.vertical = Bottleneck(width, config.bottleneck, config.activation)
        self.gate = nn.Parameter(torch.logit(torch.tensor(config.gate)))

    def forward(self, x: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(self.gate).to(x.dtype)
        return share * (x + self.horizontal(x)) + (1 - share) * (before + self.vertical(before))  # type: ignore[no-any-return]


class Bypass(Beside):
    """The network beside the model, between its embeddings and its final norm."""

    def __init__(self, model: nn.Module, name: str, config: BypassConfig, activation: Activation) -> None:
        if not 0 < config.gate < 1:
            raise UserError(f"restuning-bypass: gate is {config.gate}.", "It must be between 0 and 1.")
        layers, norm = anatomy.layers(model), anatomy.final_norm(model)
        super().__init__(model, name, config, activation)
        self._steps: list[nn.Module] = []
        # Of the forward pass that a thread is in; layers that are computed again for a gradient write what they wrote.
        self._read = PerThread()
        first = next(iter(layers.values()))
        self.before(first, lambda hidden: self._keep(0, hidden))
        for number, (path, layer) in enumerate(layers.items(), 1):
            self.add(path, Step(anatomy.width(model), config), layer)
            self._steps.append(self.parts.get_submodule(path))
            self.after(layer, lambda result, _, number=number: self._keep(number, result))
        self.before(norm, self._replace)

    def _keep(self, number: int, hidden: torch.Tensor) -> None:
        if number == 0:
            self._read.states = {}
        self._read.states[number] = hidden.detach()

    def _replace(self, _: torch.Tensor) -> torch.Tensor:
        states = self._read.states
        self._read.states = {}
        bypass = states[0]
        for number, step in enumerate(self._steps, 1):
            bypass = step(states[number], bypass.to(states[number].device))
        return bypass  # type: ignore[no-any-return]

    def conflict(self, other: Attached) -> str | None:
        if isinstance(other, Bypass | Side):
            return "both decide alone what the final norm gets"
        return None

    def merge(self) -> None:
        raise UserError(
            f"`{self.name}` cannot be merged: it is a network of its own beside the model's layers.",
            "Keep it beside the model, or tune with `lora`.",
        )


TUNERS = [Tuner("restuning-bypass", BypassConfig, "arXiv:2310.19859", Bypass)]
