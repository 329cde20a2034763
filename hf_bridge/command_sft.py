"""Tune a model on conversations: supervised fine-tuning, by LoRA or any other tuner, or of all weights.

Every option is `--section.field value` and stands in the YAML file as `field` under `section`; an option wins over the
file. The section may be left out where no other has that field, and `-` may stand for `_`.

  swift-mega bridge sft --model Qwen/Qwen3-0.6B --dataset data/chat.jsonl --tuner lora --output runs/chat
  swift-mega bridge sft run.yaml --nproc 2 --learning-rate 2e-4 --tuner-options use_rslora=true
  torchrun --nproc-per-node 8 -m swift_mega bridge sft run.yaml

Started again, a run goes on from its newest checkpoint. SIGTERM and Ctrl-C save before they stop.
"""

import argparse

from hf_bridge import command_train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    command_train.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    from hf_bridge.methods.sft import SFT

    return command_train.run(args, lambda config: SFT)
