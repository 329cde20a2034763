"""What can be known of a run before a process of it is started: torch-free, in a tenth of a second.

A layout that does not divide the model or a file that is not there is answered here, before torch is
imported on every rank.
"""

import math
from pathlib import Path

from converters import checkpoint
from converters.config_table import MegatronArguments
from converters.family import family_of
from converters.stores import safetensors
from swift_mega.base.errors import UserError
from swift_mega.data import manifest
from swift_mega.data.blend import parse_blend
from swift_mega.methods.config import PretrainConfig
from swift_mega.methods.output import check_output, resume_folder
from swift_mega.parallel.layout import check_batch, check_layout, check_sequence_length, data_parallel_size

AT_LEAST: dict[str, float] = {
    "data.num_workers": 0,
    "model.make_vocab_size_divisible_by": 1,
    "train.steps": 1,
    "train.seed": 0,
    "train.stop_after_steps": 1,
    "train.eval_interval_steps": 1,
    "train.eval_batches": 0,
    "train.recompute_num_layers": 1,
    "optimizer.lr": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_grad": 0,
    "optimizer.lr_warmup_steps": 0,
    "optimizer.lr_decay_steps": 1,
    "optimizer.lr_wsd_decay_steps": 1,
    "checkpoint.save_interval_steps": 1,
    "checkpoint.keep_last": 0,
    "log.interval_steps": 1,
    "parallel.distributed_timeout_s": 1,
}
"""The smallest number that each option may be; what layouts need is in `parallel.layout`."""


def check(config: PretrainConfig, world_size: int) -> MegatronArguments | None:
    """The model's arguments, or None where the model is still on a hub.

    Raises:
        UserError: a number makes no sense, the layout or the batch does not divide, the output folder holds
            another run, or weights or data are not there, damaged or not the model's.
    """
    _check_numbers(config)
    check_output(config)
    batch = config.train.micro_batch_size, config.train.global_batch_size
    if not Path(config.model.path).is_dir():
        check_batch(config.parallel, world_size, *batch)
        return None
    hf_config = checkpoint.read_config(config.model.path)
    arguments = family_of(hf_config).megatron_arguments(hf_config)
    # The model before the number of processes: that can follow the layout, the model cannot.
    check_layout(config.parallel, arguments, world_size)
    check_batch(config.parallel, world_size, *batch)
    check_sequence_length(config.parallel, arguments, config.data.sequence_length)
    _check_weights(config)
    for entries in (config.data.train, config.data.valid, config.data.test):
        for prefix in parse_blend(entries)[0]:
            manifest.check(prefix, arguments.vocab_size)
    return arguments


def _check_numbers(config: PretrainConfig) -> None:
    for path, least in AT_LEAST.items():
        section, _, name = path.partition(".")
        value = getattr(getattr(config, section), name)
        if value is not None and not least <= value < math.inf:
            raise UserError(f"`{path}` is {value}.", f"It must be a number of at least {least}.")


def _check_weights(config: PretrainConfig) -> None:
    """Headers and lengths of the safetensors files, where they will be read."""
    from_hf = config.model.weights == "pretrained" and not checkpoint.is_megatron(config.model.path)
    if from_hf and resume_folder(config) is None:
        safetensors.open_folder(config.model.path)


def describe(config: PretrainConfig, world_size: int, arguments: MegatronArguments | None) -> str:
    """The layout as a table: what the processes are, and how a step adds up."""
    parallel, train = config.parallel, config.train
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    vpp = parallel.virtual_pipeline_model_parallel_size or 1
    dp = data_parallel_size(parallel, world_size)
    accumulated = train.global_batch_size // (train.micro_batch_size * dp)
    tokens = train.global_batch_size * config.data.sequence_length
    rows = {
        "processes": f"{world_size} = TP {tp} × PP {pp} × DP {dp}"
        + (", sequence parallel" if parallel.sequence_parallel else ""),
        "samples per step": f"{train.global_batch_size} = micro batch {train.micro_batch_size} × DP {dp} "
        f"× {accumulated} accumulated",
        "tokens per step": f"{tokens:,}, {tokens * train.steps:,} in all {train.steps:,} steps",
    }
    if arguments:
        runs = f"{arguments.num_layers // (pp * vpp)} of {arguments.num_layers}"
        rows["layers per rank"] = runs + (f", {vpp} times" if vpp > 1 else "")
    else:
        rows["model"] = f"{config.model.path} is not a folder here: it is looked up and checked at the start"
    return "\n".join(f"{name:<18}{value}" for name, value in rows.items())
