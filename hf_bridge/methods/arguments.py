"""A run's options as transformers' TrainingArguments take them."""

import inspect
import math
from typing import Any

import torch
import transformers
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import OptimizerNames

from hf_bridge.methods import output
from hf_bridge.methods.check import SCHEDULES
from hf_bridge.methods.config import TuneConfig
from hf_bridge.parallel.presets import arguments as sharding
from hf_bridge.parallel.presets import sharded
from swift_mega.base.errors import UserError, nearest

NEVER = 1 << 40
"""Steps between two saves where nobody wants one: at the end there is one all the same."""


def training_arguments(config: TuneConfig, steps: int, *, held_out: bool, resumed: bool) -> dict[str, Any]:
    """The arguments that every method has; its Trainer may have more.

    Args:
        steps: of the whole run, whatever this start does of them.
        held_out: there is data to evaluate on.
        resumed: the run continues, so that it was evaluated before its first step.

    Raises:
        UserError: options that need each other.
    """
    train, gpu = config.train, torch.cuda.is_available()
    return {
        "output_dir": str(output.checkpoints(config)),
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "per_device_eval_batch_size": train.per_device_eval_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "num_train_epochs": train.num_train_epochs,
        "max_steps": train.max_steps,
        "learning_rate": learning_rate(config),
        "lr_scheduler_type": train.lr_scheduler_type,
        "lr_scheduler_kwargs": train.lr_scheduler_kwargs,
        # As a share transformers would round it up, and the first step of a short run would train nothing.
        "warmup_steps": math.floor(train.warmup_ratio * steps),
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optim,
        "gradient_checkpointing": train.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "seed": train.seed,
        "data_seed": train.seed,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,
        **_evaluation(config, held_out, resumed),
        # What is written, and by whom: our callbacks.
        "save_strategy": "steps",
        "save_steps": _save_steps(config),
        "save_total_limit": None,
        "logging_steps": train.logging_steps,
        "logging_nan_inf_filter": False,
        "report_to": [],
        **sharding(config.parallel),
        "disable_tqdm": True,
        "log_level": "error",
    }


def check_names(config: TuneConfig) -> None:
    """Refuse what transformers would when training starts.

    Raises:
        UserError: there is no such optimizer, or the schedule has no such option, or needs one that is not given.
    """
    train = config.train
    optimizers = [one.value for one in OptimizerNames]
    if train.optim not in optimizers:
        raise UserError(f"there is no optimizer `{train.optim}`.", nearest(train.optim, optimizers))
    name, given = train.lr_scheduler_type, train.lr_scheduler_kwargs
    for option in given:
        if option not in (known := _own_options(name)):
            have = [f"`{other}`" for other in SCHEDULES if option in _own_options(other)]
            fix = f"{' and '.join(have)} {'have' if len(have) > 1 else 'has'} it." if have else nearest(option, known)
            raise UserError(f"schedule `{name}` has no option `{option}`.", fix if have or known else "It has none.")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    try:
        transformers.get_scheduler(name, optimizer, 0, 1 << 20, given)
    except (TypeError, ValueError) as error:
        said = f" with {given}" if given else ""
        raise UserError(f"schedule `{name}`{said}: {error}.", "Give `--lr-scheduler-kwargs name=value`.") from error


def _own_options(schedule: str) -> list[str]:
    """What only this schedule has."""
    function = TYPE_TO_SCHEDULER_FUNCTION[transformers.SchedulerType(schedule)]
    every = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    return [name for name in inspect.signature(function).parameters if name not in every]


def learning_rate(config: TuneConfig) -> float:
    """The peak."""
    if config.train.learning_rate is not None:
        return config.train.learning_rate
    return 1e-5 if config.tuner == "full" else 1e-4


def _save_steps(config: TuneConfig) -> int:
    train = config.train
    return train.save_steps or (train.eval_steps if train.load_best else None) or NEVER


def _evaluation(config: TuneConfig, held_out: bool, resumed: bool) -> dict[str, Any]:
    train = config.train
    names = ("load_best", "early_stopping", "eval_steps", "predict_with_generate")
    asked = [name for name in names if getattr(train, name)]
    if not held_out:
        if asked:
            raise UserError(
                f"`train.{asked[0]}` needs data to evaluate on.", "Give `--val-dataset` or `--val-share 0.01`."
            )
        return {"eval_strategy": "no"}
    if train.predict_with_generate and sharded(config.parallel):
        raise UserError(
            "`train.predict_with_generate` needs a whole model, and it is sharded.",
            "Leave it out, or take `zero1` or `zero2`, which keep weights whole.",
        )
    if (train.load_best or train.early_stopping) and not train.eval_steps:
        raise UserError(f"`train.{asked[0]}` needs evaluations.", "Say how often: `--eval-steps 100`.")
    if train.load_best and _save_steps(config) % (train.eval_steps or 1):
        raise UserError(
            f"`train.load_best`: save_steps {train.save_steps} is no multiple of eval_steps {train.eval_steps}.",
            "The best checkpoint must have been evaluated.",
        )
    best = {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    return {
        "eval_strategy": "steps",
        "eval_steps": train.eval_steps or NEVER,
        "eval_on_start": not resumed,
        "load_best_model_at_end": train.load_best,
        **(best if asked and (train.load_best or train.early_stopping) else {}),
    }
