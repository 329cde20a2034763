"""What a reward is: a number for each answer that a model has written. Torch-free."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_bridge.data.row import Message, Row
from swift_mega.base.errors import UserError


@dataclass(frozen=True)
class Answer:
    """What the model has written.

    Attributes:
        text: without the token that ended it; other special tokens stay.
        tokens: how many it took, the one that ended it included.
        finished: whether it ended by itself, and not at the longest length.
    """

    text: str
    tokens: int = 0
    finished: bool = True


OfOne = Callable[[Answer, Row], float | None]
"""Of one answer to one row; None: nothing can be said about it."""


@dataclass(frozen=True)
class Reward:
    """A named reward.

    Attributes:
        score: answers and the row of each → a number each, or None where nothing can be said.
    """

    name: str
    score: Callable[[Sequence[Answer], Sequence[Row]], list[float | None]]

    @classmethod
    def of_one(cls, name: str, function: OfOne) -> "Reward":
        """From a function of one answer and one row; what fails in it is told with the row."""
        return cls(
            name, lambda answers, rows: [_told(name, function, *each) for each in zip(answers, rows, strict=True)]
        )


def _told(name: str, function: OfOne, answer: Answer, row: Row) -> float | None:
    try:
        value = function(answer, row)
    except UserError as error:
        raise UserError(f"reward `{name}`, {described(row)}: {error.what}", error.fix) from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        raise UserError(
            f"reward `{name}` failed on {described(row)}: {type(error).__name__}: {error} ({where}).",
            "Mend the function; it takes an Answer and a Row and gives a number or None.",
        ) from error
    if value is None or isinstance(value, int | float):
        return value if value is None else float(value)
    raise UserError(
        f"reward `{name}` gave {value!r} for {described(row)}.", "It must give a number, or None where it cannot judge."
    )


def described(row: Row) -> str:
    """The row by how its last question begins."""
    asked = next((message.content for message in reversed(row.messages) if message.role == "user"), "")
    text = " ".join(asked.split())
    return f"the row “{text[:60]}{'…' if len(text) > 60 else ''}”"


def question(row: Row) -> Row:
    """The row as the model is asked: without the answer at its end, if it has one."""
    messages = list(row.messages)
    while messages and messages[-1].role == "assistant":
        messages.pop()
    return Row(tuple(messages), row.tools, row.images, row.videos, row.audios, row.objects, extra=row.extra)


def expected_answer(row: Row) -> Message | None:
    """The answer that the row's data has, if any: its last message, of the assistant."""
    last = row.messages[-1] if row.messages else None
    return last if last is not None and last.role == "assistant" else None
