"""Compare tuners on a model and data: loss, trained parameters, memory and speed, as the SWIFT paper's Table 4.

  swift-mega bridge bench-tuners --model Qwen/Qwen3-0.6B --dataset data/chat.jsonl --val-share 0.05 --output bench
  swift-mega bridge bench-tuners --model models/mine --dataset alpaca-en#2000 --val-share 0.05 --output bench \\
      --tuners lora lisa full --max-steps 50

Each tuner is trained in a process of its own with the hyper-parameters of the paper's Table 3, unless others are given.
The table marks figures that contradict what a method says of itself. The same command goes on where it was stopped.
"""

# Read by --help, so without anything heavy until it runs.

import argparse

from hf_bridge.experiments.config import BenchTunersConfig
from swift_mega.base import config as configs
from swift_mega.base.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    configs.add_options(parser, BenchTunersConfig)


def run(args: argparse.Namespace) -> int:
    """Do what the options say; exit code 1 where a tuner could not be trained."""
    from hf_bridge.experiments.bench_tuners import bench_tuners

    options = configs.overrides(args, BenchTunersConfig)
    config = configs.build(BenchTunersConfig, options, "command line", options)
    result = bench_tuners(config)
    say(f"\n{result}\n\n{config.output}/table.md, {config.output}/tuners.png")
    return 1 if result.failed else 0
