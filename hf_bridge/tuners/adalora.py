"""What AdaLoRA does while it trains: after every step it moves rank to the matrices that need it most."""

from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

WHEN_TRAINING_BEGINS = 1
"""A `total_step` that stands for: as many as the run has. PEFT wants a number before anybody knows it."""


class AdaLoraCallback(TrainerCallback):  # type: ignore[misc]
    """Calls PEFT's update_and_allocate (arXiv:2303.10512, algorithm 1) where gradients still are there."""

    def __init__(self, host: PeftModel) -> None:
        self.tuner = host.base_model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        config = self.tuner.peft_config[self.tuner.trainable_adapter_name]
        if config.total_step == WHEN_TRAINING_BEGINS:
            config.total_step = state.max_steps
            self.tuner.rankallocator.set_total_step(state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tuner.update_and_allocate(state.global_step)
