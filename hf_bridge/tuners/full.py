"""Full tuning: the model's own weights, all or some."""

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.tuner import Attached, Tuner
from swift_mega.base.errors import UserError, nearest


@dataclass
class FullConfig:
    """Which of the model's parameters are trained; a regular expression matches anywhere in a name."""

    freeze: list[str] = field(default_factory=list)
    """Those that match stay as they are."""

    train_only: list[str] = field(default_factory=list)
    """Only those that match are trained. Empty: all."""


class Full(Attached):
    """The weights themselves."""

    switchable = False

    def __init__(self, model: nn.Module, name: str, config: FullConfig) -> None:
        super().__init__(model, name, config)
        names = [parameter_name for parameter_name, _ in model.named_parameters()]
        frozen = {one for pattern in config.freeze for one in _matching(pattern, names, "freeze")}
        wanted = {one for pattern in config.train_only for one in _matching(pattern, names, "train_only")} or set(names)
        self._parameters = {
            parameter_name: parameter
            for parameter_name, parameter in model.named_parameters()
            if parameter_name in wanted - frozen
        }
        if not self._parameters:
            raise UserError(f"With freeze={config.freeze} and train_only={config.train_only} nothing is left to train.")
        if quantised := [one for one, parameter in self._parameters.items() if not parameter.is_floating_point()]:
            raise UserError(
                f"`{quantised[0]}` is quantised and cannot be trained itself.",
                "Train a tuner such as `lora` on the quantised model, or load the model as it was.",
            )
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    def parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters

    def detach(self) -> None:
        """Nothing but the name goes: the weights have been trained themselves."""

    def merge(self) -> None:
        """Nothing to do: the weights are the model's."""


def _matching(pattern: str, names: list[str], option: str) -> list[str]:
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise UserError(f"{option}={pattern!r} is no regular expression: {error}.") from error
    if not found:
        parts = {part for name in names for part in name.split(".")} | set(names)
        raise UserError(f"{option}: no parameter matches `{pattern}`.", nearest(pattern, parts))
    return found


def _attach(model: nn.Module, name: str, config: Any, activation: Activation) -> Full:
    return Full(model, name, config)


TUNERS = [Tuner("full", FullConfig, "all of the model's weights, or some", _attach)]
