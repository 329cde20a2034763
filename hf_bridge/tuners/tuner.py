"""What a tuner is: a declaration in the registry, and what attaching it to a model gives."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.folder import load_parameters, save_parameters
from swift_mega.base.errors import UserError


class Attached(abc.ABC):
    """A tuner on a model, under a name. The base's own weights stay as they are unless it says otherwise.

    Attributes:
        model: what it is attached to.
        name: the tuner's name there; several of one kind have different names.
        config: its options.
        switchable: whether the model without it is there while it is attached: it is not where a tuner trains the
            model's own weights.
    """

    switchable: bool = True

    def __init__(self, model: nn.Module, name: str, config: Any) -> None:
        self.model, self.name, self.config = model, name, config

    @abc.abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What it trains, by name; what is saved and loaded, too. Names do not change when other tuners come."""

    @abc.abstractmethod
    def detach(self) -> None:
        """Give the model back as it was, to the last bit."""

    def save(self, folder: Path) -> None:
        """Write its options and parameters; see `hf_bridge.tuners.folder`."""
        save_parameters(folder, self.config, self.parameters())

    def load(self, folder: Path) -> None:
        """Read the parameters that `save` has written.

        Raises:
            UserError: they are of another tuner or another model.
        """
        load_parameters(folder, self.parameters())

    def merge(self) -> None:
        """Put what it does into the base's weights: computed in fp32 and rounded once.

        Raises:
            UserError: its function is none that the base's weights could have, and why.
        """
        raise UserError(f"`{self.name}` cannot be merged.", "Use it beside the model.")

    def let_go(self) -> None:
        """Undo what it changed besides modules and weights: for a model that it has been merged into."""
        return None

    def conflict(self, other: "Attached") -> str | None:
        """Why it cannot be at work at the same time as `other`; None: it can."""
        return None

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]] | None:
        """As torch's optimizers take them, where some parameters have a rate of their own (LoRA+); None: all alike."""
        return None

    def optimizer(self, groups: list[dict[str, Any]], arguments: Any) -> torch.optim.Optimizer | None:
        """Its own, for those that are (GaLore); None: whichever the run has.

        Args:
            arguments: transformers' TrainingArguments.
        """
        return None

    def callbacks(self) -> list[Any]:
        """transformers' TrainerCallbacks, for those that change while they train (AdaLoRA, LISA)."""
        return []


@dataclass(frozen=True)
class Tuner:
    """One kind of tuner.

    Attributes:
        name: as users write it, in lower case.
        config: dataclass of its options, PEFT's where PEFT has the tuner.
        source: the paper, or the library.
        attach: model, name, config and what is at work → the tuner on the model.
        defaults: of its options under this name, where they are not the config's own.
        first: it is attached before others, as it looks for layers that have no tuner in them yet.
        in_cache: it lies in the cache of keys and values, which gradient checkpointing turns off.
    """

    name: str
    config: type
    source: str
    attach: Callable[[nn.Module, str, Any, Activation], Attached]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    first: bool = False
    in_cache: bool = False
