"""What README gives for the command lines of the paper's Listing 3 is understood, down to the names in it."""

import importlib
import shlex
from pathlib import Path

import pytest

from hf_bridge.data.sources import parse_source
from hf_bridge.methods.check import check
from hf_bridge.methods.config import TuneConfig
from swift_mega.base import config as configs
from swift_mega.cli.main import COMMANDS
from swift_mega.cli.parser import Parser
from tests.support.listing3 import LISTING_3, Line

ROOT = Path(__file__).parents[1]
OURS = [line for line in LISTING_3 if line.ours]


@pytest.mark.parametrize("line", OURS, ids=lambda line: " ".join(line.swift.split()[:4]))
def test_the_command_is_understood(line: Line) -> None:
    program, *words = shlex.split(line.ours or "")
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    assert program == "swift-mega" and name in COMMANDS
    command = importlib.import_module(COMMANDS[name].module)
    parser = Parser(prog=f"swift-mega {name}")
    command.add_arguments(parser)
    args = parser.parse_args(words[len(name.split()) :])
    if name.startswith("bridge"):
        kind = _kind(name)
        options = configs.overrides(args, kind)
        config = configs.build(kind, options, "command line", options)
        check(config)
        assert all(map(parse_source, config.data.dataset))


def _kind(name: str) -> type[TuneConfig]:
    if name == "bridge rlhf":
        from hf_bridge.methods.rlhf.config import RlhfConfig

        return RlhfConfig
    return TuneConfig


@pytest.mark.parametrize("line", OURS, ids=lambda line: line.tested)
def test_there_is_a_test_that_runs_it_small(line: Line) -> None:
    assert (ROOT / line.tested).exists()


def test_what_is_missing_says_what_it_waits_for() -> None:
    assert all(line.note.startswith("to come with") for line in LISTING_3 if line.ours is None)
