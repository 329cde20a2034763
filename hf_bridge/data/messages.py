"""One turn of a conversation as files spell it → `Message`.

Content is kept verbatim: a `<think>…</think>` inside it stays there, as only a template knows what its model does with
it; `reasoning` is what the data has in a field of its own. Torch-free.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hf_bridge.data.row import Message, Role, ToolCall
from swift_mega.base.readers import Unreadable

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "tool_call": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
CALLS = ("tool_call", "function_call")
"""Roles whose content is a call, or a list of them, as JSON."""

FIELDS = {
    "role": ("role", "from"),
    "content": ("content", "value"),
    "tool_calls": ("tool_calls",),
    "function_call": ("function_call",),
    "reasoning": ("reasoning_content", "reasoning", "thinking"),
    "loss": ("loss",),
    "loss_scale": ("loss_scale", "weight"),
}
"""What a turn may have, and the names for it."""

OUR_NAME = {theirs: ours for ours, names in FIELDS.items() for theirs in names}
MEDIA = ("image", "video", "audio")


@dataclass
class Media:
    """What stands for the placeholders of a row, in their order."""

    images: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    audios: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[str]:
        """Those of one of `MEDIA`."""
        return {"image": self.images, "video": self.videos, "audio": self.audios}[kind]


@dataclass
class Turns:
    """Turns of one conversation as they are read.

    Attributes:
        media: of all content that is in parts, where the data has them in the place of a placeholder.
        unused: names in the turns that mean nothing here.
    """

    media: Media = field(default_factory=Media)
    unused: set[str] = field(default_factory=set)

    def read(self, raw: Any, column: str) -> tuple[Message, ...]:
        """All turns; calls that have a turn of their own are joined to the assistant's before it.

        Raises:
            Unreadable: with the reason.
        """
        turns: list[Message] = []
        for number, turn in enumerate(_list(raw, column), 1):
            if not isinstance(turn, dict):
                raise Unreadable(f"a turn of `{column}` is no object")
            role, message = self._turn(turn)
            if turns and role in CALLS and turns[-1].role == "assistant" and _same_loss(turns[-1], message):
                joined = turns[-1].tool_calls + message.tool_calls
                turns[-1] = msgspec.structs.replace(turns[-1], tool_calls=joined)
            else:
                _check_turn(message, number)
                turns.append(message)
        return tuple(turns)

    def _turn(self, raw: dict[str, Any]) -> tuple[str, Message]:
        values: dict[str, Any] = {}
        for name, value in raw.items():
            ours = OUR_NAME.get(name)
            if value is None:
                continue
            if ours is None:
                self.unused.add(name)
            elif ours in values:
                raise Unreadable(f"a turn has both {' and '.join(f'`{n}`' for n in FIELDS[ours] if n in raw)}")
            else:
                values[ours] = value
        role = values.get("role")
        if role is None:
            raise Unreadable("a turn without a role")
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise Unreadable(f"unknown role `{role}`")
        role = role.lower()
        content, calls = values.get("content", ""), _calls(values)
        if role in CALLS:
            content, calls = "", tuple(map(call, _parsed(content, f"content of role `{role}`")))
        return role, Message(
            ROLES[role],
            self._text(content),
            calls,
            _string(values.get("reasoning"), "reasoning"),
            _flag(values.get("loss"), "loss"),
            number(values.get("loss_scale"), "loss_scale"),
        )

    def _text(self, content: Any) -> str:
        """Content as text with placeholders; media of its parts go to `media`."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise Unreadable(f"content is {kind(content)}, not text")
        return "".join(map(self._part, content))

    def _part(self, part: Any) -> str:
        if isinstance(part, str):
            return part
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise Unreadable("a part of a content has no type")
        if part["type"] == "text":
            return str(_string(part.get("text"), "text") or "")
        medium = next((medium for medium in MEDIA if medium in part["type"]), None)
        if medium is None:
            raise Unreadable(f"a part of a content is of the unknown type `{part['type']}`")
        given = [value for name, value in part.items() if name != "type" and value is not None]
        if given:  # else it stands for the next one of the row's column
            self.media.of(medium).append(location(given[0], medium))
        return f"<{medium}>"


def call(raw: Any) -> ToolCall:
    """A call in the spelling of OpenAI (`{"function": {…}}`), or without that wrapping.

    Raises:
        Unreadable: no name, or arguments that are no JSON object.
    """
    inner = raw.get("function", raw) if isinstance(raw, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise Unreadable("a tool call without a name")
    arguments = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json_of(arguments, "arguments of a tool call") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise Unreadable("arguments of a tool call are not a JSON object")
    return ToolCall(inner["name"], arguments)


def _calls(values: dict[str, Any]) -> tuple[ToolCall, ...]:
    raw = list(_parsed(values.get("tool_calls", []), "tool_calls"))
    if "function_call" in values:  # what OpenAI had before `tool_calls`
        raw.append(values["function_call"])
    return tuple(map(call, raw))


def _parsed(value: Any, name: str) -> Iterable[Any]:
    """A list of objects, or one, perhaps as JSON."""
    if isinstance(value, str):
        value = json_of(value, name)
    return value if isinstance(value, list) else [value]


def json_of(text: str, name: str) -> Any:
    """What a column holds as a string of JSON.

    Raises:
        Unreadable: it is none.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise Unreadable(f"{name}: not valid JSON") from None


def location(value: Any, medium: str) -> str:
    """Path, URL or `data:` URI of a medium: a string, `{"url" | "path": …}` or `{"bytes": …}` as `datasets` has it.

    Raises:
        Unreadable: anything else.
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return f"data:;base64,{base64.b64encode(value['bytes']).decode()}"
        if isinstance(value.get("data"), str):  # OpenAI's `input_audio`
            return f"data:{medium}/{value.get('format', '')};base64,{value['data']}"
        for name in ("url", "path"):
            if isinstance(value.get(name), str) and value[name]:
                return str(value[name])
    raise Unreadable(f"{medium}: neither a path nor a URL nor bytes")


def kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), type(value).__name__)


def number(value: Any, name: str) -> float | None:
    """A finite number, or None where there is none.

    Raises:
        Unreadable: anything else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        raise Unreadable(f"`{name}` is not a number")
    return float(value)


def _list(raw: Any, column: str) -> list[Any]:
    turns = json_of(raw, f"`{column}`") if isinstance(raw, str) else raw
    if not isinstance(turns, list):
        raise Unreadable(f"`{column}` is {kind(turns)}, not a list of turns")
    if not turns:
        raise Unreadable(f"`{column}` is empty")
    return turns


def _string(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise Unreadable(f"`{name}` is {kind(value)}, not text")
    return value


def _flag(value: Any, name: str) -> bool | None:
    if value not in (None, True, False):
        raise Unreadable(f"`{name}` is neither true nor false")
    return None if value is None else bool(value)


def _same_loss(one: Message, other: Message) -> bool:
    return (one.loss, one.loss_scale) == (other.loss, other.loss_scale)


def _check_turn(message: Message, number: int) -> None:
    """Empty is allowed of a system message, which takes the place of a default one, and of what a tool answers."""
    empty = not (message.content.strip() or message.tool_calls or message.reasoning)
    if empty and message.role in ("user", "assistant"):
        raise Unreadable(f"empty message of the {message.role}")
    if message.tool_calls and message.role != "assistant":
        raise Unreadable(f"tool calls of the {message.role}")
    if message.role == "system" and number > 1:
        raise Unreadable("a system message that is not the first")
