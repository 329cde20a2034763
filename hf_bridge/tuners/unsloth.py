"""LoRA by Unsloth (https://github.com/unslothai/unsloth), an optional backend with kernels of its own.

Not tested here: Unsloth needs a GPU to be imported at all. What is tested is that it is refused where it is not
installed. It trains the LoRA of arXiv:2106.09685 and names tensors as PEFT does, on a model that Unsloth has loaded.
"""

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.tuner import Attached, Tuner
from swift_mega.base.errors import UserError

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(kw_only=True)
class UnslothConfig:
    """Options of Unsloth's LoRA, by its own names."""

    r: int = 8
    """Rank."""

    lora_alpha: float = 32.0
    """LoRA scales with lora_alpha ÷ r."""

    lora_dropout: float = 0.0
    """Before LoRA's first matrix; Unsloth is fast at 0 only."""

    target_modules: list[str] = field(default_factory=lambda: list(LINEAR))
    """Ends of names."""

    use_gradient_checkpointing: str = "unsloth"
    """As Unsloth takes it."""


class Unsloth(Attached):
    """LoRA whose layers are Unsloth's; at work always, for all threads, and on the model for good."""

    switchable = False

    def __init__(self, model: nn.Module, name: str, config: UnslothConfig) -> None:
        super().__init__(model, name, config)
        unsloth: Any = importlib.import_module("unsloth")
        self.tuned = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.target_modules,
            use_gradient_checkpointing=config.use_gradient_checkpointing,
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: param for name, param in self.model.named_parameters() if "lora_" in name}

    def detach(self) -> None:
        raise UserError(
            f"`{self.name}` cannot be detached: Unsloth changes the model's own forward passes for good.",
            "Save it, and load the model again.",
        )

    def merge(self) -> None:
        raise UserError(
            f"`{self.name}` is not merged here: Unsloth's layers are its own.",
            "Save it, and merge it into a model that was loaded without Unsloth: its tensors are LoRA's.",
        )


def _attach(model: nn.Module, name: str, config: Any, activation: Activation) -> Unsloth:
    if importlib.util.find_spec("unsloth") is None:
        raise UserError(
            "the tuner `unsloth` needs the package unsloth, which is not installed.",
            "pip install unsloth (it needs a GPU), or use `lora`, which trains the same matrices.",
        )
    return Unsloth(model, name, config)


TUNERS = [Tuner("unsloth", UnslothConfig, "https://github.com/unslothai/unsloth", _attach)]
