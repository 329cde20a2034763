"""What can be known of a tuning run before anything is loaded. Torch-free, in a tenth of a second."""

from pathlib import Path
from typing import Any

from hf_bridge.methods.config import TuneConfig
from hf_bridge.parallel import presets
from swift_mega.base.errors import UserError, nearest
from swift_mega.base.hub import check_name
from swift_mega.base.output import value_of

AT_LEAST: dict[str, float] = {
    "length.max_length": 2,
    "train.num_train_epochs": 0,
    "train.per_device_train_batch_size": 1,
    "train.per_device_eval_batch_size": 1,
    "train.gradient_accumulation_steps": 1,
    "train.learning_rate": 0,
    "train.warmup_ratio": 0,
    "train.weight_decay": 0,
    "train.max_grad_norm": 0,
    "train.seed": 0,
    "train.save_steps": 1,
    "train.save_total_limit": 1,
    "train.eval_steps": 1,
    "train.stop_after_steps": 1,
    "train.early_stopping": 1,
    "train.logging_steps": 1,
    "data.val_share": 0,
    "parallel.sequence_parallel_size": 1,
}
"""The smallest number that each option may be."""

BELOW_ONE = ("train.warmup_ratio", "data.val_share", "tuning.dropout")
"""Options that are a share."""

SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
    *("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"),
)
"""transformers' names of schedules; its other two look at a metric at each step."""


def check(config: TuneConfig, processes: int = 1) -> None:
    """Refuse what cannot be.

    Args:
        processes: of the job.

    Raises:
        UserError: an option out of its range, a name that does not exist.
    """
    for name, least in AT_LEAST.items():
        _check_least(name, value_of(config, name), least)
    for name in BELOW_ONE:
        value = value_of(config, name)
        if value is not None and not value < 1:
            raise UserError(f"`{name}` is {value}.", "It is a share, from 0 up to, not including, 1.")
    if config.train.max_steps == 0 or config.train.max_steps < -1:
        raise UserError(f"`train.max_steps` is {config.train.max_steps}.", "It must be at least 1, or -1 for epochs.")
    if config.train.lr_scheduler_type not in SCHEDULES:
        known = nearest(config.train.lr_scheduler_type, SCHEDULES)
        raise UserError(f"there is no schedule `{config.train.lr_scheduler_type}`.", known)
    if not Path(config.model).expanduser().is_dir():
        check_name(config.model)
    loading = config.loading
    presets.check(config.parallel, processes, quantization=loading.quantization, device_map=loading.device_map)


def _check_least(name: str, value: Any, least: float) -> None:
    if value is not None and value < least:
        raise UserError(f"`{name}` is {value}.", f"It must be at least {least:g}.")
