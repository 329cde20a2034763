"""Headings of the demo: bold on a terminal, plain in a log."""

import os
import sys

from swift_mega.base.console import say


def bold(text: str) -> str:
    """`text` in bold."""
    return _styled(text, 1)


def dim(text: str) -> str:
    """`text` in a fainter colour."""
    return _styled(text, 2)


def heading(title: str, why: str) -> None:
    """A step begins: what it is, and one line that says why."""
    say(f"\n{bold(f'━━ {title}')}\n{why}")


def _styled(text: str, code: int) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
