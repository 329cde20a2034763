"""The formats of data sets, as data: which columns tell one, and how it becomes turns.

A row has the first format of `FORMATS` all of whose columns it has; a column that holds null is not there. What no
format reads (`id`, `source` …) is counted, not lost without a word. Plain text (`text`, or a `response` without a
`query`) is one message of the assistant with nothing before it, all of which is trained on. Torch-free.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_bridge.data.messages import Turns, json_of, kind
from hf_bridge.data.row import Message
from swift_mega.base.readers import Unreadable

Fields = dict[str, Any]


class Conversation(NamedTuple):
    """What a format makes of a row: turns, and of a preference what stands in place of the last turn."""

    messages: tuple[Message, ...]
    rejected: tuple[Message, ...] | None = None


@dataclass(frozen=True)
class Format:
    """One way to write a conversation down.

    Attributes:
        needs: columns that tell it.
        may: columns that it reads besides, where they are there.
        read: a row's columns → its turns.
    """

    name: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    read: Callable[[Fields, Turns], Conversation]


COMMON = {
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "audios": ("audios", "audio"),
    "objects": ("objects",),
    "label": ("label", "kto_tag"),
    "margin": ("margin",),
    "channel": ("channel",),
}
"""Columns that a row of any format may have, and the names for each."""


def turns_of(value: Any, column: str, turns: Turns) -> tuple[Message, ...]:
    """A list of turns, or one turn by itself."""
    return turns.read([value] if isinstance(value, dict) else value, column)


def after_the_question(messages: tuple[Message, ...]) -> int:
    """Where the last turn of the assistant begins: behind the last message that is neither its own nor a tool's."""
    theirs = [number for number, message in enumerate(messages) if message.role in ("system", "user")]
    return theirs[-1] + 1 if theirs else 0


def _listed(column: str) -> Callable[[Fields, Turns], Conversation]:
    """All turns are in one column; a worse answer is text, or a conversation of its own."""

    def read(row: Fields, turns: Turns) -> Conversation:
        messages = turns.read(row[column], column)
        if "rejected_messages" in row:
            return _parted(messages, turns_of(row["rejected_messages"], "rejected_messages", Turns()))
        if "rejected_response" not in row:
            return Conversation(messages)
        shared = messages[after_the_question(messages) : -1]
        return Conversation(messages, (*shared, _assistant(row, "rejected_response")))

    return read


def _asked(prompt: str, answer: str, more: str | None = None) -> Callable[[Fields, Turns], Conversation]:
    """A question and an answer, each text or turns; `more` is put below the question, `history` before it."""

    def read(row: Fields, turns: Turns) -> Conversation:
        asked = _history(row) + _question(row, prompt, more, turns)
        answered = _turn_or_turns(row, answer, "assistant", turns)
        worse = (_assistant(row, "rejected_response"),) if "rejected_response" in row else None
        return Conversation(asked + answered, worse)

    return read


def _prompt(prompt: str) -> Callable[[Fields, Turns], Conversation]:
    """A question without an answer, for methods whose model answers itself."""
    return lambda row, turns: Conversation(_history(row) + _question(row, prompt, None, turns))


def _compared(prompt: str) -> Callable[[Fields, Turns], Conversation]:
    """`prompt`, `chosen` and `rejected`; what is chosen may repeat the prompt."""

    def read(row: Fields, turns: Turns) -> Conversation:
        asked = _history(row) + _turn_or_turns(row, prompt, "user", turns)
        chosen = _turn_or_turns(row, "chosen", "assistant", turns)
        rejected = _turn_or_turns(row, "rejected", "assistant", Turns())
        if chosen[0].role in ("assistant", "tool"):
            return _parted(asked + chosen, asked + rejected)
        start = after_the_question(chosen)
        if chosen[:start][-len(asked) :] != asked and chosen != asked:
            raise Unreadable(f"`chosen` does not go on from `{prompt}`")
        return _parted(chosen, rejected)

    return read


def _implicit(row: Fields, turns: Turns) -> Conversation:
    """`chosen` and `rejected` are whole conversations, as turns or as text of the form `\\n\\nHuman: …`."""
    both = [row[column] for column in ("chosen", "rejected")]
    if all(isinstance(value, str) for value in both):
        both = [_dialogue(value) for value in both]
    return _parted(turns_of(both[0], "chosen", turns), turns_of(both[1], "rejected", Turns()))


SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def _dialogue(text: str) -> list[Fields]:
    """Turns of a text as Anthropic's HH-RLHF has it."""
    before, *parts = SPEAKER.split(text)
    if before.strip() or not parts:
        raise Unreadable("`chosen` or `rejected` is text, and there is no `prompt`")
    roles = ("user" if speaker == "Human" else "assistant" for speaker in parts[::2])
    return [{"role": role, "content": said.strip()} for role, said in zip(roles, parts[1::2], strict=True)]


def _parted(messages: tuple[Message, ...], rejected: tuple[Message, ...]) -> Conversation:
    """Two conversations that must be the same up to the last turn of the assistant."""
    start = after_the_question(messages)
    if after_the_question(rejected) != start or messages[:start] != rejected[:start]:
        raise Unreadable("the chosen and the rejected conversation differ before the last answer")
    return Conversation(messages, rejected[start:])


def _plain(column: str) -> Callable[[Fields, Turns], Conversation]:
    return lambda row, turns: Conversation((_assistant(row, column),))


def _question(row: Fields, prompt: str, more: str | None, turns: Turns) -> tuple[Message, ...]:
    below = _text(row, more) if more in row else ""
    if not below:
        return _turn_or_turns(row, prompt, "user", turns)
    return (Message("user", "\n".join(filter(None, [_text(row, prompt), below]))),)


def _history(row: Fields) -> tuple[Message, ...]:
    """Earlier rounds, each a question and its answer; a round without a question begins with the answer."""
    messages: list[Message] = []
    history = row.get("history") or []
    for pair in json_of(history, "`history`") if isinstance(history, str) else history:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str | None) for text in pair):
            raise Unreadable("a round of `history` is not a question and an answer")
        roles = ("user", "assistant")
        messages += [Message(role, text) for role, text in zip(roles, pair, strict=True) if text]  # type: ignore[arg-type]
    return tuple(messages)


def _turn_or_turns(row: Fields, column: str, role: str, turns: Turns) -> tuple[Message, ...]:
    value = row[column]
    if isinstance(value, str) or _is_parts(value):
        value = [{"role": role, "content": value}]
    elif not isinstance(value, list | dict):
        raise Unreadable(f"`{column}` is {kind(value)}, not text")
    return turns_of(value, column, turns)


def _is_parts(value: Any) -> bool:
    """Whether a list is the content of one turn, not turns."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and "type" in first and not {"role", "from"} & first.keys()


def _assistant(row: Fields, column: str) -> Message:
    text = _text(row, column)
    if not text.strip():
        raise Unreadable(f"`{column}` is empty")
    return Message("assistant", text)


def _text(row: Fields, column: str | None) -> str:
    value = row[str(column)]
    if not isinstance(value, str):
        raise Unreadable(f"`{column}` is {kind(value)}, not text")
    return value


HISTORY = ("history",)
WORSE = ("rejected_response", "history")

FORMATS = (
    Format("preference", ("prompt", "chosen", "rejected"), HISTORY, _compared("prompt")),
    Format("preference", ("query", "chosen", "rejected"), HISTORY, _compared("query")),
    Format("preference", ("question", "chosen", "rejected"), HISTORY, _compared("question")),
    Format("preference", ("instruction", "chosen", "rejected"), HISTORY, _compared("instruction")),
    Format("preference", ("messages", "chosen", "rejected"), (), _compared("messages")),
    Format("preference", ("conversations", "chosen", "rejected"), (), _compared("conversations")),
    Format("preference, whole conversations", ("chosen", "rejected"), (), _implicit),
    Format("messages", ("messages",), ("rejected_messages", "rejected_response"), _listed("messages")),
    Format("ShareGPT", ("conversations",), ("rejected_messages", "rejected_response"), _listed("conversations")),
    Format("ShareGPT", ("conversation",), ("rejected_messages", "rejected_response"), _listed("conversation")),
    Format("query and response", ("query", "response"), WORSE, _asked("query", "response")),
    Format("Alpaca", ("instruction", "output"), ("input", *WORSE), _asked("instruction", "output", "input")),
    Format("Dolly", ("instruction", "response"), ("context", *WORSE), _asked("instruction", "response", "context")),
    Format("prompt and completion", ("prompt", "completion"), WORSE, _asked("prompt", "completion")),
    Format("prompt and response", ("prompt", "response"), WORSE, _asked("prompt", "response")),
    Format("question and response", ("question", "response"), WORSE, _asked("question", "response")),
    Format("question and answer", ("question", "answer"), WORSE, _asked("question", "answer")),
    Format("problem and solution", ("problem", "solution"), WORSE, _asked("problem", "solution")),
    Format("input and output", ("input", "output"), WORSE, _asked("input", "output")),
    Format("text", ("text",), (), _plain("text")),
    Format("text", ("response",), (), _plain("response")),
    Format("question", ("query",), HISTORY, _prompt("query")),
    Format("question", ("prompt",), HISTORY, _prompt("prompt")),
    Format("question", ("question",), HISTORY, _prompt("question")),
    Format("question", ("problem",), HISTORY, _prompt("problem")),
)
"""In the order in which they are tried: what asks for more comes first."""

COMMON_COLUMNS = frozenset(name for names in COMMON.values() for name in names)
COLUMNS = COMMON_COLUMNS.union(*(format.needs + format.may for format in FORMATS))
"""All that any format reads."""


@functools.lru_cache(maxsize=1024)
def format_of(columns: frozenset[str]) -> tuple[Format, frozenset[str]] | None:
    """The format of a row with these columns, and those of them that it does not read; None: there is none."""
    for format in FORMATS:
        if columns.issuperset(format.needs):
            return format, columns.difference(format.needs, format.may, COMMON_COLUMNS)
    return None
