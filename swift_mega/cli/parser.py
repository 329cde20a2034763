"""argparse with the manners of this command line: help that reads well, and a near name for a misspelt one.

Every mistake becomes a `UserError`; nothing here exits the process except `--help`.
"""

import argparse
import difflib
import itertools
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from swift_mega.base.errors import UserError

MAX_HELP_WIDTH = 118

MOST_NAMED = 3
"""Options; more of them would be no hint."""

SWITCH_VALUES = ("true", "false", "1", "0", "null", "none")
"""What msgspec takes for a bool, and what stands for null."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """As wide as the terminal up to a readable limit, and one spelling per option of a configuration."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, MAX_HELP_WIDTH)
        super().__init__(prog, max_help_position=34, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # An option of a configuration is known by four spellings; the first is its name in YAML.
        if "." not in action.dest:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, str(action.metavar))}"


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations, whose errors are `UserError`s."""

    def __init__(self, **options: Any) -> None:
        # Abbreviated options would break in users' scripts as soon as a longer name is added.
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, **options})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but a misspelt option is answered with the nearest one."""
        namespace, unknown = self.parse_known_args(self._switched_on(args), namespace)
        if unknown:
            self._refuse(unknown[0].partition("=")[0])
        return namespace

    def _switched_on(self, args: Sequence[str] | None) -> list[str]:
        """A switch takes the word behind it only if that is a value of a switch: `--on run.yaml` is `--on=true`."""
        words = list(sys.argv[1:] if args is None else args)
        switches = {flag for action in self._actions if action.const == "true" for flag in action.option_strings}
        return [
            f"{word}=true" if word in switches and following.lower() not in SWITCH_VALUES else word
            for word, following in itertools.zip_longest(words, words[1:], fillvalue="")
        ]

    def error(self, message: str) -> NoReturn:
        """A mistake that argparse found, as a `UserError`."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        hint = _closest(choice[1], re.findall(r"[\w.-]+", choice[2])) if choice else ""
        raise UserError(f"{self.prog}: {message}.", hint or f"`{self.prog} --help` lists what is allowed.")

    def _refuse(self, word: str) -> NoReturn:
        kind = "option" if word.startswith("-") else "argument"
        hint = _closest(word, _options(self)) or _described(word, self) if kind == "option" else ""
        raise UserError(f"{self.prog} has no {kind} `{word}`.", hint or f"`{self.prog} --help` lists them all.")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every option string of `parser` and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _options(subparser)


def _described(word: str, parser: argparse.ArgumentParser) -> str:
    """The options that speak of a word in their help: `--learning-rate` is `--optimizer.lr`."""
    phrase = " ".join(re.findall(r"[a-z0-9]+", word.lower()))
    found = [action.option_strings[0] for action in parser._actions if phrase in (action.help or "").lower()]
    named = " or ".join(f"`{option}`" for option in found[:MOST_NAMED])
    return f"is it {named}?" if 0 < len(found) <= MOST_NAMED else ""


def _closest(word: str, known: Sequence[str] | Iterator[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""
