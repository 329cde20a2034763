"""Tune a model on preferences, on rewards, or on a teacher.

Every option is `--section.field value` and stands in the YAML file as `field` under `section`; an option wins over the
file. The section may be left out where no other has that field. An option that the method does not read is an error.

  swift-mega bridge rlhf --method dpo --model models/chat --dataset data/pairs.jsonl --output runs/dpo --beta 0.1
  swift-mega bridge rlhf --method rm --model models/chat --dataset data/pairs.jsonl --output runs/rm
  swift-mega bridge rlhf --method grpo --model models/chat --dataset data/sums.jsonl --keep-columns solution
      --rewards accuracy format --num-generations 8 --output runs/grpo
  swift-mega bridge rlhf --method ppo --model models/chat --dataset data/chat.jsonl --reward-model runs/rm/model
      --output runs/ppo

dpo, ipo, cpo, simpo, orpo, rm: pairs of a chosen and a rejected answer; kto: those, or answers with a label; gkd:
conversations and `--teacher`; grpo, ppo: questions, and `--rewards` or `--reward-model`.
"""

import argparse

from hf_bridge import command_train
from hf_bridge.methods.rlhf.config import RlhfConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    command_train.add_arguments(parser, RlhfConfig)


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    from hf_bridge.methods.rlhf.methods import method_of

    return command_train.run(args, method_of, RlhfConfig)
