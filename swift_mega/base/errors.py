"""Errors a user can act on.

`UserError` is for what a person can mend: a wrong option, a missing file, a layout that does not
divide. The command line prints it alone and exits with 2. Everything else is a bug of ours and keeps
its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What was wrong and what to do next, in one message.

    Args:
        what: one sentence with the value that was given and, where numbers decide, the arithmetic.
        fix: the way out: the allowed values, the option to change, the command to run.
    """

    exit_code = 2

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.what}\n  → {self.fix}" if self.fix else self.what


class PeerLost(Exception):
    """Another rank has ended while this one waited for it. That one knows why; this one has nothing to add."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean …?` for a misspelt word, or the allowed words where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else f"known: {', '.join(known)}"
