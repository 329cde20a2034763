"""What `swift-mega bridge sft`, `pretrain` and `rlhf` have in common: options, a plan, and starting the processes."""

# Read by --help, so without torch until it runs.

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_bridge.methods.config import TuneConfig
from swift_mega.base import config as configs
from swift_mega.base.console import say
from swift_mega.base.errors import UserError
from swift_mega.base.world import launched_world_size

if TYPE_CHECKING:
    from hf_bridge.methods.method import Method


def add_arguments(parser: argparse.ArgumentParser, kind: type[TuneConfig] = TuneConfig) -> None:
    """The options of a run, and how it is started."""
    parser.usage = f"{parser.prog} [run.yaml] [--section.field value ...] [--nproc N] [--dry-run]"
    parser.add_argument("config", nargs="?", metavar="run.yaml", help="the options of the run in YAML")
    parser.add_argument(
        "--nproc", type=_process_count, default=1, metavar="N", help="processes on this machine (default: 1)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="read and encode the data, show the plan, and stop; weights are not read"
    )
    configs.add_options(parser, kind)


def run(args: argparse.Namespace, method_of: "Callable[[Any], Method]", kind: type[TuneConfig] = TuneConfig) -> int:
    """Check what can be checked without torch, then tune: here, or in `args.nproc` processes started here.

    Args:
        method_of: configuration → method, without torch; refuses what the method cannot do.
    """
    options = configs.overrides(args, kind)
    values = configs.merge(configs.read_yaml(args.config) if args.config else {}, options)
    config = configs.build(kind, values, args.config or "command line", options)
    launched = launched_world_size()
    world_size = launched or args.nproc
    if args.nproc not in (1, world_size):
        raise UserError(
            f"--nproc {args.nproc} is given, but a launcher has started {world_size} processes already (WORLD_SIZE).",
            "Leave --nproc out under torchrun.",
        )
    from hf_bridge.methods.check import check

    check(config, world_size)
    method = method_of(config)
    if args.dry_run:
        from hf_bridge.methods.plan import plan

        say(configs.dump(config))
        say(str(plan(config, method, world_size)))
        return 0
    if world_size > 1 and not launched:
        from launch import local

        return local.run(args.argv, world_size)
    from hf_bridge.methods.run import run

    run(config, method)
    return 0


def _process_count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes, which starts at 1")
    return int(text)
