"""The command line as a user meets it: help at every level, misspelt words, exit codes, and no torch."""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from swift_mega.base import config as configs
from swift_mega.base.errors import UserError
from swift_mega.cli.main import COMMANDS, main
from swift_mega.cli.parser import Parser
from swift_mega.methods.config import PretrainConfig

HEAVY = ("torch", "transformers", "megatron", "numpy", "datasets", "matplotlib")


def parser_of(name: str) -> Parser:
    """The parser of the command `name`."""
    command = importlib.import_module(COMMANDS[name].module)
    parser = Parser(prog=f"swift-mega {name}", description=command.__doc__)
    command.add_arguments(parser)
    return parser


def subcommands(parser: argparse.ArgumentParser, words: list[str]) -> list[list[str]]:
    """`words` and every command line below it that has a help text of its own."""
    levels = [words]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                levels += subcommands(subparser, [*words, name])
    return levels


def every_level() -> list[list[str]]:
    """Every command line that answers to `--help`."""
    return [[]] + [level for name in COMMANDS for level in subcommands(parser_of(name), [name])]


@pytest.mark.parametrize("words", every_level(), ids=lambda words: " ".join(words) or "top")
def test_help_needs_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys; from swift_mega.cli.main import main\n"
        f"try: main({[*words, '--help']})\n"
        "except SystemExit as end: assert not end.code\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stderr == "[]\n"
    assert result.stdout.startswith(f"usage: {' '.join(['swift-mega', *words])}")
    assert max(map(len, result.stdout.splitlines())) <= 120


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    def check(parser: argparse.ArgumentParser) -> None:
        assert parser.description or parser.prog.count(" ") > 1
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, f"{parser.prog} {action.dest}"
            else:
                for subparser in action.choices.values():
                    check(subparser)

    check(parser_of(name))


def test_top_level_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out and command.summary in out for name, command in COMMANDS.items())


def test_pretrain_help_lists_every_option_of_a_run() -> None:
    text = parser_of("pretrain").format_help()
    for leaf in configs.leaves(PretrainConfig):
        assert f"  --{leaf.path} " in text
    usage = text.partition("\n\n")[0]
    assert usage.count("\n") == 0 and len(usage) < 100


def test_a_switch_leaves_the_file_behind_it_alone() -> None:
    parser = parser_of("pretrain")
    for words in (["--sequence-parallel", "run.yaml"], ["run.yaml", "--sequence-parallel"]):
        args = parser.parse_args(words)
        assert args.config == "run.yaml" and getattr(args, "parallel.sequence_parallel") == "true"
    args = parser.parse_args(["--sequence-parallel", "False", "run.yaml"])
    assert args.config == "run.yaml" and getattr(args, "parallel.sequence_parallel") == "False"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("swift-mega ")


@pytest.mark.parametrize(
    ("argv", "cause", "way_out"),
    [
        (["pretrian"], "there is no command `pretrian`.", "did you mean `pretrain`?"),
        (["pretrain", "--optimizer.lrr", "1"], "has no option `--optimizer.lrr`.", "did you mean `--optimizer.lr`?"),
        (
            ["pretrain", "--tensor-model-paralel-size=2"],
            "has no option",
            "did you mean `--tensor-model-parallel-size`?",
        ),
        (["pretrain", "--learning-rate", "1e-4"], "has no option `--learning-rate`.", "is it `--optimizer.lr`"),
        (["pretrain", "run.yaml", "again.yaml"], "has no argument `again.yaml`.", "--help"),
        (["pretrain", "--nproc", "0"], "'0' is not a number of processes", "--help"),
        (["pretrain", "--model.precision"], "expected one argument", "--help"),
        (["pretrain", "nothing.yaml"], "cannot read nothing.yaml: No such file or directory.", "YAML file"),
        (["pretrain", "--output", "x"], "`model.path` is missing.", "--model.path"),
        (["pretrain", "--output", "x", "--model.path", "x", "--steps", "many"], "`--train.steps` is 'many'", "--help"),
        (["data", "biuld"], "invalid choice: 'biuld'", "did you mean `build`?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    argv: list[str], cause: str, way_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and cause in err and way_out in err.partition("→")[2]
    assert "Traceback" not in err and len(err.splitlines()) == 2


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("swift_mega.cli.pretrain.run", raising(ZeroDivisionError("division by zero")))
    assert main(["pretrain"]) == 1
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_what_is_no_exception_is_explained_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch's CheckpointException derives from BaseException."""
    monkeypatch.setattr("swift_mega.cli.pretrain.run", raising(CheckpointException("load", {})))
    assert main(["pretrain"]) == 1
    assert capsys.readouterr().err.count("CheckpointException ranks:") == 1


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("swift_mega.cli.pretrain.run", raising(KeyboardInterrupt()))
    assert main(["pretrain"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    """A command that ends with `error`."""

    def run(args: argparse.Namespace) -> int:
        raise error

    return run


def test_a_closed_pipe_is_no_traceback() -> None:
    job = f"{sys.executable} -m swift_mega pretrain --help | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", job], capture_output=True, text=True)
    assert result.stderr == ""


def test_somebody_elses_packages_are_named(tmp_path: Path) -> None:
    (tmp_path / "converters").mkdir()
    (tmp_path / "converters" / "__init__.py").touch()
    command = [sys.executable, "-m", "swift_mega", "pretrain", "--output", "x"]
    # In the working directory they do no harm …
    beside = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "`model.path` is missing." in beside.stderr
    # … but in front on PYTHONPATH they win, and are named.
    (elsewhere := tmp_path / "elsewhere").mkdir()
    environment = {"PYTHONPATH": str(tmp_path)}
    ahead = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert ahead.returncode == 2
    assert f"the package `converters` in {tmp_path / 'converters'}" in ahead.stderr


def test_options_of_the_command_line_are_errors_for_argparse_too() -> None:
    with pytest.raises(UserError, match="the following arguments are required"):
        parser = Parser(prog="x")
        parser.add_argument("SRC")
        parser.parse_args([])
