"""Start or continue the pretraining of a model on Megatron-Core.

The run is described by a YAML file, by options, or by both: an option wins over the file. Every option
is `--section.field value` and stands in the file as `field` under `section`. The section may be left
out where no other has that field (`--lr 1e-5`), and `-` may stand for `_`, so that Megatron's own flags
work as they are (`--tensor-model-parallel-size 2`).

  swift-mega pretrain run.yaml
  swift-mega pretrain run.yaml --nproc 2 --tensor-model-parallel-size 2 --sequence-parallel
  torchrun --nproc-per-node 8 -m swift_mega pretrain run.yaml
"""

import argparse

from swift_mega.base import config as configs
from swift_mega.base import run_command
from swift_mega.base.console import say
from swift_mega.methods.config import PretrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run, and how it is started."""
    run_command.add_arguments(parser, PretrainConfig, "check everything that needs no model, show it, and stop")


def run(args: argparse.Namespace) -> int:
    """Check what can be checked without torch, then train: here, or in `args.nproc` processes started here."""
    config, world_size, launched = run_command.told(args, PretrainConfig)
    if launched and not args.dry_run:
        return _train(config)
    # Not at the top: --help needs neither numpy, with which model files are read, nor subprocess.
    from launch import local
    from swift_mega.methods.check import check, describe
    from swift_mega.methods.output import finished

    arguments = check(config, world_size)
    if args.dry_run:
        say(configs.dump(config))
        say(describe(config, world_size, arguments))
        return 0
    if finished(config):
        return _train(config)  # which says so
    say(describe(config, world_size, arguments))
    return local.run(args.argv, world_size) if world_size > 1 else _train(config)


def _train(config: PretrainConfig) -> int:
    from swift_mega.methods.pretrain import pretrain

    pretrain(config)
    return 0
