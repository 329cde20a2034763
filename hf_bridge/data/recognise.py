"""A row as a file has it → `Row`, or the reason why it is a bad one. Torch-free."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from hf_bridge.data.formats import COLUMNS, COMMON, Conversation, after_the_question, format_of
from hf_bridge.data.messages import MEDIA, Media, Turns, json_of, kind, location, number
from hf_bridge.data.row import Message, Row
from hf_bridge.data.self_cognition import Identity, introduced
from swift_mega.base.errors import UserError, nearest
from swift_mega.base.readers import Unreadable

PLURAL = {"image": "images", "video": "videos", "audio": "audios"}
BOX_TYPES = ("real", "norm_1000", "norm_1")
WORDS = {"true": True, "false": False}
"""How CSV writes a label."""


class Recognition(msgspec.Struct, frozen=True):
    """What decides how rows are read; part of the cache's key."""

    columns: tuple[tuple[str, str], ...] = ()
    """(theirs, ours): names of their columns that mean ours."""
    strict: bool = False
    """A row with a column that nothing reads is a bad row."""
    answers: bool = True
    """Every conversation has to end with the assistant. False: questions alone will do."""
    keep: tuple[str, ...] = ()
    """Columns that go to `Row.extra`."""
    identity: Identity | None = None
    """What {{NAME}} and {{AUTHOR}} stand for."""


class Recognised(NamedTuple):
    """A row, and what was seen on the way.

    Attributes:
        format: name of its format.
        columns: all that hold something, by their own names.
        unused: those that nothing reads; `messages.name` is a field of a turn.
    """

    row: Row
    format: str
    columns: frozenset[str]
    unused: frozenset[str]


def column_names(mapping: list[str]) -> tuple[tuple[str, str], ...]:
    """`theirs=ours` as pairs.

    Raises:
        UserError: not of that form, one of ours that does not exist, or one that is given twice.
    """
    pairs = []
    for text in mapping:
        theirs, equals, ours = text.rpartition("=")
        if not (theirs and equals and ours):
            raise UserError(f"`--columns {text}` names no two columns.", "Write `theirs=ours`: `question=query`.")
        if ours not in COLUMNS:
            raise UserError(f"`--columns {text}`: there is no column `{ours}` here.", nearest(ours, COLUMNS))
        pairs.append((theirs, ours))
    for side, words in ((0, "means two of ours"), (1, "is meant by two of theirs")):
        names = [pair[side] for pair in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UserError(f"`--columns`: `{twice}` {words}.", "Name each column once.")
    return tuple(pairs)


def recognise(values: Mapping[str, Any], options: Recognition) -> Recognised:
    """The row in one of the formats of `formats.FORMATS`.

    Raises:
        Unreadable: why it is a bad row.
    """
    columns = frozenset(name for name, value in values.items() if value is not None)
    ours, hidden = _renamed(columns, options.columns)
    found = format_of(frozenset(ours))
    if found is None:
        raise Unreadable(f"no known format has the columns {', '.join(sorted(columns)) or '(none)'} (`--columns`)")
    format, ignored = found
    fields = {name: values[theirs] for name, theirs in ours.items()}
    turns = Turns()
    conversation = format.read(fields, turns)
    unused = {ours[name] for name in ignored} | hidden
    read = (*options.keep, "tag") if options.identity else options.keep
    unused = unused.difference(read) | {f"messages.{name}" for name in turns.unused}
    if options.strict and unused:
        raise Unreadable(f"not used: {', '.join(sorted(unused))}")
    row = _row(conversation, _common(fields), turns.media)
    extra = {name: values[name] for name in options.keep if name in columns}
    row = msgspec.structs.replace(row, extra=extra) if extra else row
    row = introduced(row, options.identity, fields.get("tag"))
    _check(row, options.answers)
    return Recognised(row, format.name, columns, frozenset(unused))


@functools.lru_cache(maxsize=1024)
def _renamed(columns: frozenset[str], mapping: tuple[tuple[str, str], ...]) -> tuple[dict[str, str], frozenset[str]]:
    """Our names → theirs, and those of theirs whose name a mapping has given to another column."""
    mapped = {ours: theirs for theirs, ours in mapping if theirs in columns}
    rest = columns.difference(mapped.values())
    return {**{name: name for name in rest if name not in mapped}, **mapped}, rest.intersection(mapped)


def _common(fields: dict[str, Any]) -> dict[str, Any]:
    """The columns that any format may have, by our first name for each."""
    common = {}
    for ours, names in COMMON.items():
        there = [name for name in names if name in fields]
        if len(there) > 1:
            raise Unreadable(f"both `{there[0]}` and `{there[1]}`")
        if there:
            common[ours] = fields[there[0]]
    return common


def _row(conversation: Conversation, common: dict[str, Any], in_turns: Media) -> Row:
    messages = _with_system(conversation.messages, common.get("system"))
    media: dict[str, Any] = {PLURAL[medium]: _media(medium, common, in_turns) for medium in MEDIA}
    for medium in MEDIA:
        messages = _with_placeholders(messages, f"<{medium}>", len(media[PLURAL[medium]]))
    return Row(
        messages=messages,
        tools=_tools(common.get("tools", [])),
        objects=_objects(common["objects"]) if common.get("objects") else None,
        rejected=conversation.rejected,
        label=_label(common.get("label")),
        margin=number(_unquoted(common.get("margin")), "margin"),
        channel=_channel(common.get("channel")),
        **media,
    )


def _with_system(messages: tuple[Message, ...], system: Any) -> tuple[Message, ...]:
    if system is not None and not isinstance(system, str):
        raise Unreadable(f"`system` is {kind(system)}, not text")
    if not system:
        return messages
    if messages[0].role == "system":
        raise Unreadable("a system message both as a column and as a turn")
    return (Message("system", system), *messages)


def _media(medium: str, common: dict[str, Any], in_turns: Media) -> tuple[str, ...]:
    value = common.get(PLURAL[medium], [])
    if isinstance(value, str) and value.startswith("["):
        value = json_of(value, f"`{PLURAL[medium]}`")
    column = tuple(location(one, medium) for one in (value if isinstance(value, list) else [value]))
    if column and in_turns.of(medium):
        raise Unreadable(f"{PLURAL[medium]} both as a column and in the turns")
    return column or tuple(in_turns.of(medium))


def _with_placeholders(messages: tuple[Message, ...], placeholder: str, count: int) -> tuple[Message, ...]:
    """One placeholder for each medium; where there are none at all they are put before what the user says first."""
    if count == 0:
        return messages  # then it is text like any other
    there = sum(message.content.count(placeholder) for message in messages)
    first = next((number for number, message in enumerate(messages) if message.role == "user"), None)
    if there == 0 and first is not None:
        asked = msgspec.structs.replace(messages[first], content=placeholder * count + messages[first].content)
        return (*messages[:first], asked, *messages[first + 1 :])
    if there != count:
        raise Unreadable(f"{there} times `{placeholder}` for {count} of them")
    return messages


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    tools = json_of(value, "`tools`") if isinstance(value, str) and value.strip() else value or []
    tools = [json_of(tool, "`tools`") if isinstance(tool, str) else tool for tool in _as_list(tools)]
    if not all(isinstance(tool, dict) for tool in tools):
        raise Unreadable("`tools` is not a list of objects")
    return tuple(tools)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _label(value: Any) -> bool | float | None:
    value = _unquoted(value)
    return value if isinstance(value, bool) else number(value, "label")


def _unquoted(value: Any) -> Any:
    """A number, true or false out of a format that knows only strings; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value.lower() in WORDS:
        return WORDS[value.lower()]
    try:
        return float(value)
    except ValueError:
        return value


def _channel(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise Unreadable(f"`channel` is {kind(value)}, not text")
    return value


def _objects(value: Any) -> dict[str, Any]:
    """Boxes by columns; the paper's listing 2 has a list of objects, as JSON."""
    value = json_of(value, "`objects`") if isinstance(value, str) else value
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        kinds = {one.get("bbox_type", "real") for one in value}
        if len(kinds) > 1:
            raise Unreadable("`objects` have boxes of several types")
        images = [one["image"] for one in value if "image" in one]
        boxes = {"ref": [one.get("caption", "") for one in value], "bbox": [one.get("bbox") for one in value]}
        value = {**boxes, "bbox_type": kinds.pop(), **({"image_id": images} if images else {})}
    if not isinstance(value, dict) or not isinstance(value.get("bbox"), list):
        raise Unreadable("`objects` has no list `bbox`")
    for box in value["bbox"]:
        if not isinstance(box, list) or len(box) not in (2, 4):
            raise Unreadable("a box of `objects` is not two or four numbers")
        for edge in box:
            number(edge, "bbox")
    if value.get("bbox_type", "real") not in BOX_TYPES:
        raise Unreadable(f"`bbox_type` is `{value['bbox_type']}`, not one of {', '.join(BOX_TYPES)}")
    return value


def _check(row: Row, answers: bool) -> None:
    before = ""
    for message in row.messages:
        if message.role == "tool" and before not in ("assistant", "tool"):
            raise Unreadable("the answer of a tool that the assistant has not called")
        before = message.role
    if before == "system":
        raise Unreadable("nothing but a system message")
    if (answers or row.rejected is not None or row.label is True or row.label is False) and before != "assistant":
        raise Unreadable(f"the last turn is the {before}'s, not the assistant's")
    if row.rejected is not None:
        if not row.rejected or row.rejected[-1].role != "assistant":
            raise Unreadable("the rejected conversation does not end with the assistant")
        if row.rejected == row.messages[after_the_question(row.messages) :]:
            raise Unreadable("the chosen and the rejected answer are the same")
