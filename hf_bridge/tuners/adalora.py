"""What AdaLoRA does while it trains: after every step it moves rank to the matrices that need it most."""

from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from swift_mega.base.errors import UserError

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""PEFT's names for the importance of every number, and the moving averages of it and of its uncertainty."""
WHEN_TRAINING_BEGINS = 2**31 - 1
"""A `total_step` that stands for: as many as the run has. PEFT wants a number before anybody knows it."""


class AdaLoraCallback(TrainerCallback):  # type: ignore[misc]
    """Calls PEFT's update_and_allocate (arXiv:2303.10512, algorithm 1) where gradients still are there."""

    def __init__(self, host: PeftModel) -> None:
        self.tuner = host.base_model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        config = self.tuner.peft_config[self.tuner.trainable_adapter_name]
        if config.total_step == WHEN_TRAINING_BEGINS:
            if config.tinit + config.tfinal >= state.max_steps:
                raise UserError(
                    f"AdaLoRA has no step to move rank in: tinit={config.tinit} and tfinal={config.tfinal} of "
                    f"{state.max_steps} steps.",
                    "Train for longer, or make these smaller.",
                )
            self.tuner.rankallocator.set_total_step(state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tuner.update_and_allocate(state.global_step)


def averages(host: PeftModel) -> dict[str, torch.Tensor]:
    """What the choice of ranks goes by, under `<average>.<parameter>`; zero where no step has been made."""
    tuner = host.base_model
    found: dict[str, torch.Tensor] = {}
    for name, parameter in tuner.model.named_parameters():
        if "lora_" in name and f".{tuner.trainable_adapter_name}" in name:
            for kind in _AVERAGES:
                of_kind = getattr(tuner.rankallocator, kind)
                found[f"{kind}.{name}"] = of_kind.setdefault(name, torch.zeros_like(parameter))
    return found
