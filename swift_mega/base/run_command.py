"""What all commands that train are told: a YAML file, options that win over it, and how many processes. Torch-free."""

import argparse
from typing import Generic, NamedTuple, TypeVar

from swift_mega.base import config as configs
from swift_mega.base.errors import UserError
from swift_mega.base.world import launched_world_size

T = TypeVar("T")


class Told(NamedTuple, Generic[T]):
    """What a command line says."""

    config: T
    world_size: int
    """Processes of the run."""
    launched: bool
    """This is one of them: a launcher has started it."""


def add_arguments(parser: argparse.ArgumentParser, cls: type, dry_run: str) -> None:
    """The options of a run that `cls` describes, and how it is started.

    Args:
        dry_run: what `--dry-run` does.
    """
    parser.usage = f"{parser.prog} [run.yaml] [--section.field value ...] [--nproc N] [--dry-run]"
    parser.add_argument("config", nargs="?", metavar="run.yaml", help="the options of the run in YAML")
    parser.add_argument(
        "--nproc", type=_process_count, default=1, metavar="N", help="processes on this machine (default: 1)"
    )
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    configs.add_options(parser, cls)


def told(args: argparse.Namespace, cls: type[T]) -> Told[T]:
    """What the arguments and their file say, checked.

    Raises:
        UserError: an option that is wrong or missing, or two numbers of processes.
    """
    options = configs.overrides(args, cls)
    values = configs.merge(configs.read_yaml(args.config) if args.config else {}, options)
    config = configs.build(cls, values, args.config or "command line", options)
    launched = launched_world_size()
    world_size = launched or args.nproc
    if args.nproc not in (1, world_size):
        raise UserError(
            f"--nproc {args.nproc} is given, but a launcher has started {world_size} processes already (WORLD_SIZE).",
            "Leave --nproc out under torchrun.",
        )
    return Told(config, world_size, launched is not None)


def _process_count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, which starts at 1")
    return int(text)
