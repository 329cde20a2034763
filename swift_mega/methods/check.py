"""What can be known of a run before a process of it is started: torch-free, in a tenth of a second.

A layout that does not divide the model or a file that is not there is answered here, before torch is
imported on every rank.
"""

from pathlib import Path

from converters import checkpoint
from converters.config_table import MegatronArguments
from converters.family import family_of
from swift_mega.base.errors import UserError
from swift_mega.methods.config import PretrainConfig
from swift_mega.parallel.layout import check_layout


def check(config: PretrainConfig, world_size: int) -> MegatronArguments | None:
    """Raise a UserError for what is wrong; the model's arguments, or None where it is still on a hub."""
    for option, entries in (("train", config.data.train), ("valid", config.data.valid), ("test", config.data.test)):
        for entry in entries:
            _check_data(f"data.{option}", Path(entry.split(maxsplit=1)[-1]))
    if not Path(config.model.path).is_dir():
        return None
    hf_config = checkpoint.read_config(config.model.path)
    arguments = family_of(hf_config).megatron_arguments(hf_config)
    check_layout(config.parallel, arguments, world_size)
    check_batch(config, world_size)
    return arguments


def check_batch(config: PretrainConfig, world_size: int) -> int:
    """How many micro batches each rank accumulates per step; a UserError where that is not a whole number."""
    data_parallel_size = world_size // (
        config.parallel.tensor_model_parallel_size * config.parallel.pipeline_model_parallel_size
    )
    per_pass = config.train.micro_batch_size * data_parallel_size
    accumulation, rest = divmod(config.train.global_batch_size, per_pass)
    if rest or not accumulation:
        raise UserError(
            f"train.global_batch_size {config.train.global_batch_size} is not a multiple of "
            f"micro_batch_size {config.train.micro_batch_size} × data parallel size {data_parallel_size} = {per_pass}.",
            f"The nearest that is: {per_pass * max(accumulation, 1)} or {per_pass * (accumulation + 1)}.",
        )
    return accumulation


def describe(config: PretrainConfig, world_size: int, arguments: MegatronArguments | None) -> str:
    """The layout as a table: what each process holds, and how a step adds up."""
    parallel = config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    dp = world_size // (tp * pp)
    vpp = parallel.virtual_pipeline_model_parallel_size or 1
    rows = [
        ("processes", f"{world_size} = TP {tp} × PP {pp} × DP {dp}"),
        ("sequence parallel", "yes" if parallel.sequence_parallel else "no"),
        (
            "samples per step",
            f"{config.train.global_batch_size} = micro batch {config.train.micro_batch_size} × DP {dp} × "
            f"{config.train.global_batch_size // (config.train.micro_batch_size * dp)} accumulated",
        ),
        ("tokens per step", f"{config.train.global_batch_size * config.data.sequence_length:,}"),
        ("tokens of the run", f"{config.train.steps * config.train.global_batch_size * config.data.sequence_length:,}"),
    ]
    if arguments:
        layers = arguments.num_layers // (pp * vpp)
        rows.insert(1, ("layers per stage", f"{layers}" + (f" × {vpp} virtual stages" if vpp > 1 else "")))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _check_data(option: str, prefix: Path) -> None:
    for suffix in (".idx", ".bin"):
        if not Path(f"{prefix}{suffix}").is_file():
            raise UserError(
                f"{option}: there is no file {prefix}{suffix}.",
                "Give the prefix of a .bin/.idx pair, as written by `swift-mega data build`.",
            )
