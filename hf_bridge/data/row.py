"""The one form in which every tuning method sees a row of data, on both training paths.

Whatever a file calls its columns, what comes out of reading it are these rows; a template makes tokens of them.
Torch-free.
"""

from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
"""`tool` is what a called tool has answered."""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the assistant calls, as OpenAI's `tool_calls` have it."""

    name: str
    arguments: dict[str, Any] | str = {}
    """Parsed, or as the model wrote them where that is no JSON."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn."""

    role: Role
    content: str = ""
    """Text; `<image>`, `<video>` and `<audio>` stand for the next of the row's media."""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    """What the assistant thought before `content`. None: nothing is said about it."""
    loss: bool | None = None
    """Whether it is trained on. None: as the loss scale says, of roles that the model writes."""
    loss_scale: float | None = None
    """Weight of its tokens in the loss. None: as the loss scale says."""


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A conversation, or with `rejected` or `label` a preference.

    Plain text, as for pretraining, is a single message of the assistant.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of what the assistant may call."""
    images: tuple[str, ...] = ()
    """URLs, `data:` URIs or paths, of files that were there when the row was read; in the order of their
    placeholders."""
    videos: tuple[str, ...] = ()
    audios: tuple[str, ...] = ()
    objects: dict[str, Any] | None = None
    """Grounding: `ref` (names), `bbox` (boxes) and `bbox_type` (`real`, `norm_1000`, `norm_1`)."""
    rejected: tuple[Message, ...] | None = None
    """In the place of the last turn of the assistant, which is all behind the last message of the user: the worse
    answer. Where tools are called in between, those messages are in it, too."""
    label: bool | float | None = None
    """KTO: whether the answer is wanted; classification and reward: its value."""
    margin: float | None = None
    """Of a reward model: by how much the answer is better than `rejected`."""
    channel: str | None = None
    """Name of the part of the data that it is from, whose loss is reported apart."""
    extra: dict[str, Any] = {}
    """Columns that were asked to be kept, such as the solution that a reward function compares with."""
