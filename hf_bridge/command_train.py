"""What `swift-mega bridge sft`, `pretrain` and `rlhf` have in common: options, a plan, and starting the processes."""

# Read by --help, so without torch until it runs.

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_bridge.methods.config import TuneConfig
from swift_mega.base import config as configs
from swift_mega.base import run_command
from swift_mega.base.console import say

if TYPE_CHECKING:
    from hf_bridge.methods.method import Method


def add_arguments(parser: argparse.ArgumentParser, kind: type[TuneConfig] = TuneConfig) -> None:
    """The options of a run, and how it is started."""
    dry_run = "read and encode the data, show the plan, and stop; weights are not read"
    run_command.add_arguments(parser, kind, dry_run)


def run(args: argparse.Namespace, method_of: "Callable[[Any], Method]", kind: type[TuneConfig] = TuneConfig) -> int:
    """Check what can be checked without torch, then tune: here, or in `args.nproc` processes started here.

    Args:
        method_of: configuration → method, without torch; refuses what the method cannot do.
    """
    config, world_size, launched = run_command.told(args, kind)
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
