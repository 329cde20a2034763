"""DeepSpeed's ZeRO (arXiv:1910.02054) and torch's FSDP2 (arXiv:2304.11277) by one word, as transformers takes them.

A preset is data. Torch-free: what cannot be is refused before anything is loaded.
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from hf_bridge.parallel.config import ParallelConfig
from swift_mega.base.errors import UserError, nearest

AUTO: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
}
"""What the run decides, in DeepSpeed's names; `auto` is what transformers fills in."""

OVERLAPPED = {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": "auto"}
GATHERED = {
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_gather_16bit_weights_on_model_save": True,  # or what is saved is a shard that nothing else reads
}
ON_HOST = {"device": "cpu", "pin_memory": True}

ZERO: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1, **OVERLAPPED},
    "zero2": {"stage": 2, **OVERLAPPED},
    "zero3": {"stage": 3, **OVERLAPPED, **GATHERED},
    "zero2-offload": {"stage": 2, **OVERLAPPED, "offload_optimizer": ON_HOST},
    "zero3-offload": {"stage": 3, **OVERLAPPED, **GATHERED, "offload_optimizer": ON_HOST, "offload_param": ON_HOST},
}
"""Word → `zero_optimization`: 1 shards the optimizer's state, 2 gradients as well, 3 also the weights."""

FSDP: dict[str, dict[str, Any]] = {
    "fsdp2": {"version": 2, "state_dict_type": "FULL_STATE_DICT"},
    "fsdp2-offload": {"version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_offload": True},
}
"""Word → transformers' `fsdp_config`. A full state is what is saved: whole weights or a whole adapter."""

OF_THE_RUN = {
    "optimizer": "--optim, --learning-rate and --weight-decay",
    "scheduler": "--lr-scheduler-type and --warmup-ratio",
    "train_batch_size": "--per-device-train-batch-size and --gradient-accumulation-steps",
    "train_micro_batch_size_per_gpu": "--per-device-train-batch-size",
    "gradient_accumulation_steps": "--gradient-accumulation-steps",
    "gradient_clipping": "--max-grad-norm",
    "sequence_parallel_size": "--sequence-parallel-size",
    "tensor_parallel": "swift-mega pretrain, which has tensor parallelism",
}
"""Entries of a DeepSpeed file that would say what options say → these options."""


def arguments(config: ParallelConfig) -> dict[str, Any]:
    """Entries of transformers' TrainingArguments.

    Raises:
        UserError: as `check`.
    """
    found: dict[str, Any] = {}
    if config.deepspeed:
        found["deepspeed"] = deepspeed(config.deepspeed)
    if config.fsdp:
        found |= {"fsdp": True, "fsdp_config": dict(FSDP[config.fsdp])}
    return found


def sharded(config: ParallelConfig) -> bool:
    """Whether no process has all weights while it trains."""
    if config.fsdp:
        return True
    zero = deepspeed(config.deepspeed).get("zero_optimization", {}) if config.deepspeed else {}
    return bool(zero.get("stage") == 3)


def deepspeed(name: str) -> dict[str, Any]:
    """DeepSpeed's configuration of a preset, or of a file, with what the run decides left to it.

    Raises:
        UserError: no such preset or file, no JSON, or something in it that the run decides.
    """
    if name in ZERO:
        return {**AUTO, "zero_optimization": dict(ZERO[name])}
    file = Path(name)
    if not name.endswith(".json") and not file.is_file():
        raise UserError(f"There is no DeepSpeed preset `{name}`.", f"{nearest(name, ZERO)} Or give a JSON file.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--deepspeed: {name} cannot be read: {error}.", f"Or take {', '.join(ZERO)}.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"--deepspeed: {name} is no JSON: {error}.", "Mend it.") from error
    if not isinstance(values, dict):
        raise UserError(f"--deepspeed: {name} holds no object, but {values!r:.60}.", "DeepSpeed wants {…}.")
    for key, options in OF_THE_RUN.items():
        if values.get(key, "auto") != "auto":
            raise UserError(
                f"--deepspeed: {name} sets `{key}`, which the run decides.", f"Take it out, and use {options}."
            )
    return AUTO | values


def check(
    config: ParallelConfig, processes: int, *, quantization: str | None = None, device_map: str | None = None
) -> None:
    """Refuse what cannot be, or cannot be together.

    Args:
        processes: of the job.
        quantization, device_map: of the model.

    Raises:
        UserError: which two, and what to do.
    """
    if config.fsdp and config.fsdp not in FSDP:
        raise UserError(f"There is no FSDP preset `{config.fsdp}`.", nearest(config.fsdp, FSDP))
    words = {"--deepspeed": config.deepspeed, "--fsdp": config.fsdp}
    given = " ".join(f"{option} {word}" for option, word in words.items() if word)
    if config.deepspeed and config.fsdp:
        raise UserError(f"{given}: both shard the same things.", "Take one of them.")
    if given and device_map:
        raise UserError(
            f"{given} gives each process a device, and --device-map {device_map} spreads a model over several.",
            "Take one of them.",
        )
    if config.deepspeed:
        deepspeed(config.deepspeed)
        _check_deepspeed_is_there(given)
    if quantization and sharded(config):
        raise UserError(
            f"{given} shards weights, and {quantization} packs them so that no shard of them is a weight.",
            "Take zero1 or zero2, which keep weights whole, or no quantisation.",
        )
    _check_processes(config, processes)


def _check_processes(config: ParallelConfig, processes: int) -> None:
    size = config.sequence_parallel_size
    if processes % size:
        raise UserError(
            f"a sequence is to be shared by {size} processes (--sequence-parallel-size), and there are {processes}.",
            f"Start a multiple of {size}, such as --nproc {-(-processes // size) * size}.",
        )
    if config.fsdp and processes == 1:
        raise UserError(f"--fsdp {config.fsdp} shares a model among processes.", "Start some: --nproc 2.")


def ready(config: ParallelConfig) -> None:
    """Before TrainingArguments are made and weights are loaded, once this process has joined its job."""
    from swift_mega.compat import accelerate_cpu

    if config.deepspeed:
        accelerate_cpu.join_deepspeed()
    if config.fsdp:
        accelerate_cpu.let_fsdp_run()


def _check_deepspeed_is_there(given: str) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"{given}: DeepSpeed is not installed.", "pip install 'swift-mega[deepspeed]'")
    _tools_of_this_python()
    missing = [tool for tool in ("ninja", "g++") if shutil.which(tool) is None]
    if missing and not _has_gpu():
        raise UserError(
            f"{given}: on a CPU DeepSpeed compiles its communication when it starts, and there is no {missing[0]}.",
            f"Install {' and '.join(missing)}, or take --fsdp fsdp2, which compiles nothing.",
        )


def _tools_of_this_python() -> None:
    """DeepSpeed calls `ninja` by name, which lies beside this Python where no environment was activated."""
    import sys

    beside = str(Path(sys.executable).parent)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, (os.environ.get("PATH"), beside)))


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia").exists()
