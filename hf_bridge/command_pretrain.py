"""Train a model on plain texts, every token of them: the same run as `bridge sft`, with other examples.

For many GPUs and long runs there is `swift-mega pretrain`, on Megatron-Core; this is for one GPU and for adapters.

  swift-mega bridge pretrain --model Qwen/Qwen3-0.6B --dataset books/*.txt --tuner lora --packing --output runs/books
"""

import argparse

from hf_bridge import command_train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    command_train.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    from hf_bridge.methods.pretrain import PRETRAIN

    return command_train.run(args, lambda config: PRETRAIN)
