"""What can be known of a run before a process of it is started: torch-free, in a tenth of a second.

A layout that does not divide the model or a file that is not there is answered here, before torch is
imported on every rank.
"""

from pathlib import Path

from converters import checkpoint
from converters.config_table import MegatronArguments
from converters.family import family_of
from swift_mega.data import manifest
from swift_mega.data.blend import parse_blend
from swift_mega.methods.config import PretrainConfig
from swift_mega.parallel.layout import check_batch, check_layout, check_sequence_length, data_parallel_size


def check(config: PretrainConfig, world_size: int) -> MegatronArguments | None:
    """The model's arguments, or None where the model is still on a hub.

    Raises:
        UserError: the layout or the batch does not divide, or the data is not there or not the model's.
    """
    check_batch(config.parallel, world_size, config.train.micro_batch_size, config.train.global_batch_size)
    if not Path(config.model.path).is_dir():
        return None
    hf_config = checkpoint.read_config(config.model.path)
    arguments = family_of(hf_config).megatron_arguments(hf_config)
    check_layout(config.parallel, arguments, world_size)
    check_sequence_length(config.parallel, arguments, config.data.sequence_length)
    for entries in (config.data.train, config.data.valid, config.data.test):
        for prefix in parse_blend(entries)[0]:
            manifest.check(prefix, arguments.vocab_size)
    return arguments


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
