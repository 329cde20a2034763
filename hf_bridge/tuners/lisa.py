"""LISA (Pan et al., "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning",
arXiv:2403.17919).

In each interval of K optimizer steps, γ of the N decoder layers, drawn at random, are trained together with everything
outside the layers (embeddings, final norm, head); the others have no gradients and no optimizer state. The paper's
p = (1, γ/N, …, γ/N, 1).

Which layers those are is a function of the seed and the number of the interval alone, so that a resumed run goes on
with the same ones. A layer that is frozen loses its optimizer state, which is where the memory is saved, and starts
with none when it is drawn again.

It trains the model's own weights: detach leaves them as they have become.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.trainer_callback import TrainerCallback

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.full import Full, FullConfig
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.errors import UserError


@dataclass(kw_only=True)
class LisaConfig(FullConfig):
    """Options of LISA, besides those of `full`."""

    activated_layers: int = 2
    """γ: decoder layers that are trained at a time."""

    step_interval: int = 20
    """K: optimizer steps for which they stay the same."""

    seed: int = 0
    """Of the draws."""


class Lisa(Full):
    """All weights, a few layers at a time."""

    def __init__(self, model: nn.Module, name: str, config: LisaConfig) -> None:
        mine = [list(layer.parameters()) for layer in anatomy.layers(model).values()]
        if not 1 <= config.activated_layers <= len(mine):
            raise UserError(
                f"lisa: activated_layers is {config.activated_layers}, and the model has {len(mine)} layers.",
                f"It must be between 1 and {len(mine)}.",
            )
        super().__init__(model, name, config)
        trained = {id(param) for param in self.parameters().values()}
        self.layers = [[param for param in layer if id(param) in trained] for layer in mine]

    def drawn(self, step: int) -> list[int]:
        """The numbers of the layers that are trained in optimizer step `step`, counted from 0."""
        draw = random.Random(f"{self.config.seed}:{step // self.config.step_interval}")
        return sorted(draw.sample(range(len(self.layers)), self.config.activated_layers))

    def choose(self, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        """Freeze all layers but those drawn for `step`, and forget what the optimizer knows of the frozen ones."""
        drawn = self.drawn(step)
        for number, params in enumerate(self.layers):
            for param in params:
                param.requires_grad_(number in drawn)
                if number not in drawn:
                    param.grad = None
                    if optimizer is not None:
                        optimizer.state.pop(param, None)

    def detach(self) -> None:
        for params in self.layers:
            for param in params:
                param.requires_grad_(True)
        super().detach()

    def callbacks(self) -> list[Any]:
        return [LisaCallback(self)]


class LisaCallback(TrainerCallback):  # type: ignore[misc]
    """Chooses layers before every optimizer step of a Trainer."""

    def __init__(self, lisa: Lisa) -> None:
        self.lisa = lisa

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.deepspeed or args.fsdp:
            raise UserError(
                "lisa changes which parameters have gradients while it trains, and DeepSpeed and FSDP cut them into"
                " pieces once for all.",
                "Train on one GPU, or with plain data parallelism.",
            )
        if args.world_size > 1 and not args.ddp_find_unused_parameters:
            raise UserError(
                f"lisa freezes layers while {args.world_size} processes expect gradients from all of them.",
                "Set ddp_find_unused_parameters=True in the training arguments.",
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.lisa.choose(state.global_step, optimizer)


def _attach(model: nn.Module, name: str, config: Any, activation: Activation) -> Lisa:
    return Lisa(model, name, config)


TUNERS = [Tuner("lisa", LisaConfig, "LISA, arXiv:2403.17919", _attach)]
