"""What can be known of a run before a process of it is started: torch-free, in a tenth of a second.

A layout that does not divide the model or a file that is not there is answered here, before torch is
imported on every rank.
"""

import math
from pathlib import Path

from converters import checkpoint
from converters.config_table import MegatronArguments
from converters.family import family_of
from converters.stores import quantised
from swift_mega.base.errors import UserError
from swift_mega.base.hub import check_name
from swift_mega.base.reading import read_errors_are_the_users
from swift_mega.data import manifest, shares
from swift_mega.data.blend import parse_blend
from swift_mega.methods.config import PretrainConfig
from swift_mega.methods.output import check_output, finished, resume_folder
from swift_mega.parallel.layout import check_batch, check_layout, check_sequence_length, data_parallel_size
from swift_mega.train.schedule import check_schedule

AT_LEAST: dict[str, float] = {
    "data.num_workers": 0,
    "model.make_vocab_size_divisible_by": 1,
    "model.attention_dropout": 0,
    "model.hidden_dropout": 0,
    "model.moe_aux_loss_coeff": 0,
    "model.moe_router_bias_update_rate": 0,
    "train.steps": 1,
    "train.seed": 0,
    "train.stop_after_steps": 1,
    "train.eval_interval_steps": 1,
    "train.eval_batches": 0,
    "train.recompute_num_layers": 1,
    "optimizer.lr": 0,
    "optimizer.weight_decay": 0,
    "optimizer.adam_beta1": 0,
    "optimizer.adam_beta2": 0,
    "optimizer.adam_eps": 0,
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

BELOW_ONE = ("model.attention_dropout", "model.hidden_dropout", "optimizer.adam_beta1", "optimizer.adam_beta2")
"""Options that are a share."""


def check(config: PretrainConfig, world_size: int) -> MegatronArguments | None:
    """The model's arguments, or None where the model is still on a hub.

    Raises:
        UserError: a number makes no sense, the layout or the batch does not divide, weights or data are not there,
            damaged or not the model's, or the output folder holds another run.
    """
    _check_numbers(config)
    check_schedule(config.optimizer, config.train.steps)
    arguments = _local_arguments(config)
    if arguments:
        # Before the number of processes: that can follow the layout, the model cannot.
        check_model(config, arguments, world_size)
        _check_weights(config)
    microbatches(config, world_size)
    _check_data(config, arguments)
    check_output(config)
    finished(config)
    return arguments


def check_model(config: PretrainConfig, arguments: MegatronArguments, world_size: int) -> None:
    """Whether this model can be cut and trained as the configuration says.

    Raises:
        UserError: it cannot.
    """
    check_layout(config.parallel, arguments, world_size)
    check_sequence_length(config.parallel, arguments, config.data.sequence_length)
    block, layers = config.train.recompute_num_layers, layers_per_run(config, arguments)
    if config.train.recompute_granularity == "full" and block > layers:
        raise UserError(
            f"`train.recompute_num_layers` is {block}, and a rank has {layers} consecutive layers "
            f"({arguments.num_layers} / (PP × VPP)).",
            f"Choose 1 to {layers}.",
        )


def microbatches(config: PretrainConfig, world_size: int) -> int:
    """Micro-batches that each rank runs per step.

    Raises:
        UserError: the batch does not divide.
    """
    train = config.train
    return check_batch(config.parallel, world_size, train.micro_batch_size, train.global_batch_size)


def layers_per_run(config: PretrainConfig, arguments: MegatronArguments) -> int:
    """Consecutive layers of a rank; with virtual stages a rank has several such runs."""
    parallel = config.parallel
    runs = parallel.pipeline_model_parallel_size * (parallel.virtual_pipeline_model_parallel_size or 1)
    return arguments.num_layers // runs


def _local_arguments(config: PretrainConfig) -> MegatronArguments | None:
    with read_errors_are_the_users(config.model.path):
        is_here = Path(config.model.path).expanduser().is_dir()
    if not is_here:
        check_name(config.model.path)
        return None
    hf_config = checkpoint.read_config(config.model.path)
    return family_of(hf_config).megatron_arguments(hf_config)


def _check_data(config: PretrainConfig, arguments: MegatronArguments | None) -> None:
    streams = shares.streams(config.data, evaluates=config.train.eval_batches > 0)
    for name, (entries, part) in streams.items():
        for prefix in parse_blend(entries)[0]:
            index, _ = manifest.check(prefix, arguments.vocab_size if arguments else None)
            shares.documents(index, part, name, config.data.sequence_length)


def _check_numbers(config: PretrainConfig) -> None:
    for path, least in AT_LEAST.items():
        section, _, name = path.partition(".")
        value = getattr(getattr(config, section), name)
        bound, limit = (1, " and below 1") if path in BELOW_ONE else (math.inf, "")
        if value is not None and not least <= value < bound:
            raise UserError(f"`{path}` is {value}.", f"It must be a number of at least {least}{limit}.")


def _check_weights(config: PretrainConfig) -> None:
    """Headers and lengths of the safetensors files, where they will be read."""
    from_hf = config.model.weights == "pretrained" and not checkpoint.is_megatron(config.model.path)
    if from_hf and resume_folder(config) is None:
        with read_errors_are_the_users(config.model.path):
            quantised.open_weights(config.model.path, checkpoint.read_config(config.model.path))


def describe(config: PretrainConfig, world_size: int, arguments: MegatronArguments | None) -> str:
    """The layout as a table: what the processes are, and how a step adds up."""
    parallel, train = config.parallel, config.train
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    vpp = parallel.virtual_pipeline_model_parallel_size or 1
    dp = data_parallel_size(parallel, world_size)
    tokens = train.global_batch_size * config.data.sequence_length
    rows = {
        "processes": f"{world_size} = TP {tp} × PP {pp} × DP {dp}"
        + (", sequence parallel" if parallel.sequence_parallel else ""),
        "samples per step": f"{train.global_batch_size} = micro batch {train.micro_batch_size} × DP {dp} "
        f"× {microbatches(config, world_size)} accumulated",
        "tokens per step": f"{tokens:,}, {tokens * train.steps:,} in all {train.steps:,} steps",
    }
    if arguments:
        runs = f"{layers_per_run(config, arguments)} of {arguments.num_layers}"
        rows["layers per rank"] = runs + (f", {vpp} times" if vpp > 1 else "")
    else:
        rows["model"] = f"{config.model.path} is not a folder here: it is looked up and checked at the start"
    return "\n".join(f"{name:<18}{value}" for name, value in rows.items())
