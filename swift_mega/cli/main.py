"""`swift-mega`: the command table, and how errors reach the person who typed the command.

A command is a module with `add_arguments(parser)` and `run(args) -> exit code or None`; its module
docstring is the description in `--help`, and `args.argv` the command line as it was typed. This file and
every command module import nothing heavy: help and a misspelt option are answered without torch.
"""

import importlib
import importlib.util
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from swift_mega.base import failures
from swift_mega.base.errors import UserError, nearest
from swift_mega.cli.parser import Parser


class Command(NamedTuple):
    """Where a command lives and what it does, in one line."""

    module: str
    summary: str


COMMANDS = {
    "pretrain": Command("swift_mega.cli.pretrain", "start or continue the pretraining of a model"),
    "convert": Command("converters.commands", "turn a Hugging Face model into a Megatron checkpoint, or back"),
    "convert verify": Command("swift_mega.cli.verify", "check that two checkpoints are the same model"),
    "convert diff": Command("converters.command_diff", "say how far apart two checkpoints are"),
    "convert inspect": Command("converters.command_inspect", "show what a checkpoint holds and how it is stored"),
    "convert manifest": Command("converters.command_manifest", "write a hash of every tensor of a model"),
    "convert push": Command("converters.command_push", "upload a Hugging Face folder to a hub"),
    "bridge sft": Command("hf_bridge.command_sft", "tune a model on conversations: LoRA, all weights, …"),
    "bridge pretrain": Command("hf_bridge.command_pretrain", "the same on plain texts"),
    "bridge rlhf": Command("hf_bridge.command_rlhf", "tune it on preferences or rewards: DPO, KTO, GRPO, PPO, …"),
    "bridge show-data": Command("hf_bridge.command_show_data", "show rows of data as a model is trained on them"),
    "bridge models": Command("hf_bridge.command_models", "list model types, their ids and templates"),
    "bridge bench-tuners": Command("hf_bridge.command_bench_tuners", "compare tuners on a model and data"),
    "bridge score-agent": Command("hf_bridge.command_score_agent", "score what a model wrote as an agent"),
    "data": Command("swift_mega.data.commands", "build and inspect the token files that training reads"),
    "doctor": Command("launch.doctor", "show versions and devices, what is missing and what that costs"),
}

HELP = """usage: swift-mega <command> [options]

Large-scale pretraining of language models on Megatron-Core; models come from and go back to Hugging Face.

commands:
{commands}

options:
  -h, --help      show this text
  --version       show the version

`swift-mega <command> --help` lists every option of a command."""


def main(argv: list[str] | None = None) -> int:
    """Run the command in `argv` (default: the process's own) and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    with failures.explained() as outcome:
        outcome.exit_code = _dispatch(argv)
    return outcome.exit_code


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP.format(commands=_listed(COMMANDS)))
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version  # imports 40 ms of email parsing: not for --help

        print(f"swift-mega {version('swift-mega')}")
        return 0
    words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    name = " ".join(argv[:words])
    members = {known: command for known, command in COMMANDS.items() if known.startswith(f"{argv[0]} ")}
    if name not in COMMANDS and members and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        print(f"usage: swift-mega {argv[0]} <command> [options]\n\ncommands:\n{_listed(members)}")
        return 0
    if name not in COMMANDS:
        wrong, known = (
            (argv[1], {own.split()[1] for own in members}) if members else (name, {own.split()[0] for own in COMMANDS})
        )
        raise UserError(f"there is no command `{' '.join(argv[: 2 if members else 1])}`.", nearest(wrong, known))
    _check_siblings()
    command = importlib.import_module(COMMANDS[name].module)
    parser = Parser(prog=f"swift-mega {name}", description=command.__doc__)
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv[words:], Namespace(argv=argv))) or 0


def _listed(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    return "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in commands.items())


def _check_siblings() -> None:
    """The packages beside ours have common names: say so when Python finds somebody else's."""
    home = Path(__file__).resolve().parents[2]
    for name in ("converters", "hf_bridge", "launch"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise UserError(
                f"Python finds the package `{name}` in {found or 'no folder'}, but swift-mega's is {home / name}.",
                "Start the command in another folder, or take the folder that holds it out of PYTHONPATH.",
            )
