"""LoRA+: LoRA whose second matrix learns faster."""

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from torch import nn

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.peft_tuners import TUNERS as OF_PEFT
from hf_bridge.tuners.peft_tuners import PeftAttached
from hf_bridge.tuners.tuner import Tuner


@dataclass
class LoraPlusConfig(LoraConfig):  # type: ignore[misc]
    """LoRA's options, and the ratio of the two rates."""

    loraplus_lr_ratio: float = 16.0
    """η_B ÷ η_A; the paper recommends 2⁴."""

    loraplus_lr_embedding: float = 1e-6
    """Of the factors of an embedding."""


class LoraPlus(PeftAttached):
    """LoRA with η_B = λ·η_A (arXiv:2402.12354, section 4): with equal rates, B hardly learns where models are wide."""

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """A (and what else is trained) at `lr`, B at λ·`lr`, the factors of embeddings at their own rate."""
        rates = {"lora_B": lr * self.config.loraplus_lr_ratio, "lora_embedding": self.config.loraplus_lr_embedding}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters().items():
            rate = next((rate for part, rate in rates.items() if part in name), lr)
            groups.setdefault((rate, weight_decay if parameter.dim() > 1 else 0.0), []).append(parameter)
        return [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()]


def _attach(model: nn.Module, name: str, config: Any, activation: Activation) -> LoraPlus:
    return LoraPlus(model, name, config, activation)


_LORA = next(one for one in OF_PEFT if one.name == "lora")
TUNERS = [Tuner("lora+", LoraPlusConfig, "LoRA+, arXiv:2402.12354", _attach, _LORA.defaults)]
