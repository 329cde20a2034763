"""What the numbers of a learning-rate schedule mean, and whether they agree with each other. Torch-free."""

from swift_mega.base.errors import UserError
from swift_mega.train.config import OptimizerConfig


def wsd_decay_steps(config: OptimizerConfig, total_steps: int) -> int:
    """Steps of WSD's final decay; a tenth of the run where the user did not say."""
    return config.lr_wsd_decay_steps or max(1, total_steps // 10)


def check_schedule(config: OptimizerConfig, total_steps: int) -> None:
    """Raise a UserError where the schedule's numbers contradict each other."""
    decay_steps = config.lr_decay_steps or total_steps
    if not 0 <= config.min_lr <= config.lr:
        raise UserError(
            f"The learning rate would fall from {config.lr} to {config.min_lr}.",
            "Choose 0 ≤ optimizer.min_lr ≤ optimizer.lr.",
        )
    if config.lr_warmup_steps >= decay_steps:
        raise UserError(
            f"Warm-up takes {config.lr_warmup_steps} steps, but the decay ends at step {decay_steps}.",
            f"Choose optimizer.lr_warmup_steps below {decay_steps}.",
        )
    if config.lr_decay_style == "WSD" and config.lr_warmup_steps + wsd_decay_steps(config, total_steps) > decay_steps:
        raise UserError(
            f"WSD needs {config.lr_warmup_steps} steps of warm-up and {wsd_decay_steps(config, total_steps)} of decay, "
            f"more than the {decay_steps} it has.",
            "Lower optimizer.lr_wsd_decay_steps or optimizer.lr_warmup_steps, or raise train.steps.",
        )
