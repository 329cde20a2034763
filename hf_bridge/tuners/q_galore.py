"""Q-GaLore (Zhang et al., "Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients",
arXiv:2407.08296).

GaLore with less memory and fewer SVDs:

- P is kept in 4 bits, in groups of 256 numbers with a scale s and a least number p₀ each,
      q = round((p − p₀) / s) ∈ {0 … 15},   p₀ = min p,   s = (max p − min p) / 15,   p ≈ s q + p₀;
- Adam's moments are kept in 8 bits, by bitsandbytes' blockwise dynamic code, with 256 numbers to a scale; those with
  fewer than 4096 numbers stay in fp32, as in bitsandbytes' own optimizers;
- the interval T of a matrix is doubled whenever its last five projections were alike: the mean cosine similarity of
  their first singular vectors with those before them, without the sign that an SVD leaves open, is at least 0.4.

The paper also keeps the weights in 8 bits. Here they stay in the type they were loaded in.
"""

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.galore import GaLore, GaLoreAdamW, GaLoreConfig, leading
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.errors import UserError

GROUP = 256
"""Numbers that share a scale."""

WATCHED = 5
"""Projections that must have been alike."""

SMALL = 4096
"""Moments of fewer numbers stay in fp32."""


@dataclass(kw_only=True)
class QGaLoreConfig(GaLoreConfig):
    """Options of Q-GaLore, besides GaLore's."""

    similarity: float = 0.4
    """From which on projections count as alike."""


class QGaLoreAdamW(GaLoreAdamW):
    """GaLore's, with its state in few bits."""

    def basis(self, state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        if state["step"] - 1 == state.setdefault("next", 0):
            new = leading(gradient, group["rank"])
            state["interval"] = _interval(state, new[..., 0].flatten(), group)
            state["next"] += state["interval"]
            state["codes"], state["scale"], state["least"] = to_4_bits(new)
            state["shape"] = list(new.shape)
        return from_4_bits(state["codes"], state["scale"], state["least"], state["shape"])

    def moments(self, state: dict[str, Any], gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if gradient.numel() < SMALL or "exp_avg" not in state:
            return super().moments(state, gradient)
        first, second = (_from_8_bits(state, key, signed) for key, signed in MOMENTS)
        return first.view_as(gradient), second.view_as(gradient)

    def keep_moments(self, state: dict[str, Any], first: torch.Tensor, second: torch.Tensor) -> None:
        if first.numel() < SMALL:
            super().keep_moments(state, first, second)
        else:
            for (key, signed), moment in zip(MOMENTS, (first, second), strict=True):
                _to_8_bits(state, key, signed, moment)


MOMENTS = (("exp_avg", True), ("exp_avg_sq", False))
"""Name in the state, and whether there are negative ones."""


def _interval(state: dict[str, Any], first: torch.Tensor, group: dict[str, Any]) -> int:
    """T from here on, with `first` the first singular vector of the new projection."""
    interval = int(state.get("interval", group["update_interval"]))
    alike: list[float] = state.setdefault("alike", [])
    if "first" in state:
        alike.append(torch.nn.functional.cosine_similarity(state["first"], first, dim=0).abs().item())
    del alike[:-WATCHED]
    state["first"] = first.clone()
    return interval * 2 if len(alike) == WATCHED and sum(alike) / WATCHED >= group["similarity"] else interval


def to_4_bits(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two codes a byte, and scale and least number of every group of 256; the last group may be padded."""
    missing = -tensor.numel() % GROUP
    numbers = tensor.flatten()
    groups = torch.cat([numbers, numbers[-1:].expand(missing)]).view(-1, GROUP)
    least = groups.amin(1, keepdim=True)
    scale = ((groups.amax(1, keepdim=True) - least) / 15).clamp(min=torch.finfo(torch.float32).tiny)
    codes = ((groups - least) / scale).round().to(torch.uint8)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), scale, least


def from_4_bits(codes: torch.Tensor, scale: torch.Tensor, least: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The tensor of `shape` that `to_4_bits` was given, nearly."""
    numbers = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1) * scale + least
    return numbers.flatten()[: torch.Size(shape).numel()].view(shape)


@functools.cache
def _code(signed: bool, device: torch.device) -> torch.Tensor:
    """What the 256 codes of bitsandbytes' dynamic type stand for."""
    import bitsandbytes.functional as bnb

    return bnb.create_dynamic_map(signed=signed).to(device)  # type: ignore[no-any-return]


def _to_8_bits(state: dict[str, Any], key: str, signed: bool, moment: torch.Tensor) -> None:
    import bitsandbytes.functional as bnb

    codes, how = bnb.quantize_blockwise(moment.contiguous(), code=_code(signed, moment.device), blocksize=GROUP)
    state[key], state[f"{key}_absmax"] = codes, how.absmax


def _from_8_bits(state: dict[str, Any], key: str, signed: bool) -> torch.Tensor:
    import bitsandbytes.functional as bnb

    codes, absmax = state[key], state[f"{key}_absmax"]
    code = _code(signed, codes.device)
    return bnb.dequantize_blockwise(codes, absmax=absmax, code=code, blocksize=GROUP)  # type: ignore[no-any-return]


class QGaLore(GaLore):
    """All weights, with gradients projected for an optimizer that keeps its state in few bits."""

    optimizer_class = QGaLoreAdamW

    def options(self) -> dict[str, Any]:
        return {**super().options(), "similarity": self.config.similarity}


def _attach(model: nn.Module, name: str, config: Any, activation: Activation) -> QGaLore:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "q-galore keeps Adam's moments in 8 bits with bitsandbytes, which is not installed.",
            "pip install 'swift-mega[qlora]', or use `galore`.",
        )
    return QGaLore(model, name, config)


TUNERS = [Tuner("q-galore", QGaLoreConfig, "Q-GaLore, arXiv:2407.08296", _attach)]
