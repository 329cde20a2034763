"""Rows of every format, and what is wrong with the wrong ones."""

from typing import Any

import pytest

from hf_bridge.data.formats import FORMATS
from hf_bridge.data.recognise import Recognition, column_names, recognise
from hf_bridge.data.row import Message, Row, ToolCall
from hf_bridge.data.self_cognition import identity
from swift_mega.base.errors import UserError
from swift_mega.base.readers import Unreadable

Q, A, B = "What is 2 + 2?", "4", "5"
ASKED, GOOD, WORSE = Message("user", Q), Message("assistant", A), Message("assistant", B)
USER, GPT = {"role": "user", "content": Q}, {"role": "assistant", "content": A}
BAD_GPT = {"role": "assistant", "content": B}
CALL = ToolCall("add", {"a": 2, "b": 2})
CALLS = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
PAIR = Row(messages=(ASKED, GOOD))
PREFERENCE = Row(messages=(ASKED, GOOD), rejected=(WORSE,))


def read(row: dict[str, Any], **options: Any) -> Row:
    return recognise(row, Recognition(**options)).row


PAIRS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [USER, GPT]},
    "messages as JSON": {"messages": '[{"role": "user", "content": "What is 2 + 2?"}, {"from": "gpt", "value": "4"}]'},
    "null is absent": {"messages": [{**USER, "tool_calls": None}, GPT], "system": None, "prompt": None},
    "ShareGPT": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "query": {"query": Q, "response": A, "history": []},
    "Alpaca": {"instruction": Q, "input": "", "output": A, "system": ""},
    "Alpaca, all in the input": {"instruction": "", "input": Q, "output": A},
    "prompt and completion": {"prompt": [USER], "completion": [GPT]},
    "question and answer": {"question": Q, "answer": A},
    "roles in capitals": {"messages": [{**USER, "role": "User"}, {**GPT, "role": "Assistant"}]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, GPT]},
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_a_question_and_its_answer(row: dict[str, Any]) -> None:
    assert read(row) == PAIR


PREFERENCES: dict[str, dict[str, Any]] = {
    "strings": {"prompt": Q, "chosen": A, "rejected": B},
    "answers as turns": {"prompt": [USER], "chosen": [GPT], "rejected": [BAD_GPT]},
    "whole conversations beside a prompt": {"prompt": Q, "chosen": [USER, GPT], "rejected": [USER, BAD_GPT]},
    "… and the messages": {"messages": [USER, GPT], "chosen": [USER, GPT], "rejected": [USER, BAD_GPT]},
    "whole conversations": {"chosen": [USER, GPT], "rejected": [USER, BAD_GPT]},
    "HH-RLHF": {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"},
    "rejected response": {"query": Q, "response": A, "rejected_response": B},
    "rejected response of messages": {"messages": [USER, GPT], "rejected_response": B},
    "rejected messages": {"messages": [USER, GPT], "rejected_messages": [USER, BAD_GPT]},
    "ranked ShareGPT": {
        "conversations": [{"from": "human", "value": Q}],
        "chosen": {"from": "gpt", "value": A},
        "rejected": {"from": "gpt", "value": B},
    },
}


@pytest.mark.parametrize("row", PREFERENCES.values(), ids=PREFERENCES)
def test_preferences(row: dict[str, Any]) -> None:
    assert read(row) == PREFERENCE


def test_the_listing_of_the_paper() -> None:
    row = read(
        {
            "system": "You are a good math teacher.",
            "query": Q,
            "response": A,
            "history": [["Can you?", "Yes."]],
            "tools": [TOOL],
        }
    )
    roles = [(message.role, message.content) for message in row.messages]
    assert roles == [
        ("system", "You are a good math teacher."),
        ("user", "Can you?"),
        ("assistant", "Yes."),
        ("user", Q),
        ("assistant", A),
    ]
    assert row.tools == (TOOL,)
    boxes = '[{"caption": "guy in red", "bbox": [138, 136, 235, 359], "bbox_type": "real", "image": 0}]'
    grounding = {"query": "<image>Where is <ref-object>?", "response": "<bbox>", "images": ["a.jpg"], "objects": boxes}
    assert read(grounding).objects == {
        "ref": ["guy in red"],
        "bbox": [[138, 136, 235, 359]],
        "bbox_type": "real",
        "image_id": [0],
    }


def test_input_goes_below_the_instruction() -> None:
    assert read({"instruction": "Add.", "input": "2 and 2", "output": A}).messages[0].content == "Add.\n2 and 2"


CALLING = (ASKED, Message("assistant", "", (CALL,)), Message("tool", "4"), GOOD)
WITH_CALLS: dict[str, dict[str, Any]] = {
    "OpenAI": {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            GPT,
        ],
        "tools": [TOOL],
    },
    "older OpenAI": {
        "messages": [
            USER,
            {"role": "assistant", "function_call": {"name": "add", "arguments": {"a": 2, "b": 2}}},
            {"role": "function", "name": "add", "content": "4"},
            GPT,
        ],
        "functions": [TOOL],
    },
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": Q},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": A},
        ],
        "tools": '[{"type": "function", "function": {"name": "add", "parameters": {}}}]',
    },
    "SWIFT": {
        "messages": [
            USER,
            {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
            {"role": "tool_response", "content": "4"},
            GPT,
        ],
        "tools": ['{"type": "function", "function": {"name": "add", "parameters": {}}}'],
    },
}


@pytest.mark.parametrize("row", WITH_CALLS.values(), ids=WITH_CALLS)
def test_tool_calls(row: dict[str, Any]) -> None:
    assert read(row) == Row(messages=CALLING, tools=(TOOL,))


def test_a_turn_of_calls_joins_what_the_assistant_said_before_it() -> None:
    call = {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 2, "b": 2}}'}
    row = read({"messages": [USER, {"role": "assistant", "content": "I add."}, call, call]})
    assert row.messages[1:] == (Message("assistant", "I add.", (CALL, CALL)),)


def test_a_worse_last_answer_keeps_the_calls_before_it() -> None:
    row = read({"messages": WITH_CALLS["OpenAI"]["messages"], "rejected_response": B})
    assert row.rejected == (*CALLING[1:3], WORSE)


def test_strings_of_a_format_that_knows_nothing_else() -> None:
    row = read(
        {"query": Q, "response": A, "label": "1", "history": '[["a", "b"]]', "images": '["x.png"]', "margin": "2"}
    )
    assert (row.label, row.margin, row.images, len(row.messages)) == (1.0, 2.0, ("x.png",), 4)


@pytest.mark.parametrize("label", [True, False, "False"])
def test_kto(label: bool | str) -> None:
    expected = Row(messages=(ASKED, GOOD), label=label is True)
    assert read({"prompt": Q, "completion": A, "label": label}) == expected
    assert read({"messages": [USER, GPT], "kto_tag": label}) == expected


@pytest.mark.parametrize("column", ["text", "response"])
def test_plain_text_is_one_message_of_the_assistant(column: str) -> None:
    assert read({column: "Once upon\n"}) == Row(messages=(Message("assistant", "Once upon\n"),))


def test_loss_and_reasoning_of_a_turn() -> None:
    turns = [USER, {**GPT, "loss": False, "reasoning_content": "hm"}, USER, {**GPT, "weight": 0.5}]
    messages = read({"messages": turns}).messages
    assert messages[1] == Message("assistant", A, (), "hm", False)
    assert messages[3] == Message("assistant", A, loss_scale=0.5)


def test_thoughts_inside_the_content_stay_there() -> None:
    text = "<think>\nhm\n</think>\n\n4"
    assert read({"query": Q, "response": text}).messages[1] == Message("assistant", text)


def test_media() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}, {"type": "text", "text": Q}]
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    row = read({"messages": [{"role": "user", "content": [*parts, audio]}, GPT]})
    assert (row.images, row.audios) == (("https://a/b.png",), ("data:audio/wav;base64,AAAA",))
    assert row.messages[0].content == f"<image>{Q}<audio>"
    stored = read({"query": Q, "response": A, "image": {"bytes": b"\x00\x01", "path": None}})
    assert stored.images == ("data:;base64,AAE=",)
    assert stored.messages[0].content == f"<image>{Q}"
    part = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": Q}]}
    assert read({"messages": [part, GPT], "images": ["a.png"]}).images == ("a.png",)
    assert read({"query": "a tag, <image>, of XML", "response": A}).images == ()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"a": 1, "b": 2}, r"no known format has the columns a, b \(`--columns`\)"),
    "nothing": ({"a": None}, r"\(none\)"),
    "role": ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role `wizard`"),
    "no role": ({"messages": [{"content": "x"}]}, "without a role"),
    "no turns": ({"messages": []}, "`messages` is empty"),
    "no list": ({"messages": 5}, "`messages` is a number, not a list"),
    "broken list": ({"messages": "[{"}, "`messages`: not valid JSON"),
    "no object": ({"messages": ["hello"]}, "a turn of `messages` is no object"),
    "no text": ({"messages": [{"role": "user", "content": 5}]}, "content is a number"),
    "no text in a column": ({"query": Q, "response": 5}, "`response` is a number, not text"),
    "no answer": ({"messages": [USER]}, "the last turn is the user's"),
    "question alone": ({"query": Q}, "the last turn is the user's"),
    "empty answer": ({"query": Q, "response": " "}, "empty message of the assistant"),
    "empty question": ({"query": "", "response": A}, "empty message of the user"),
    "empty text": ({"text": "\n"}, "`text` is empty"),
    "system only": ({"messages": [{"role": "system", "content": "x"}]}, "nothing but a system message"),
    "second system": ({"messages": [USER, {"role": "system", "content": "x"}]}, "that is not the first"),
    "two systems": ({"messages": [{"role": "developer", "content": "x"}, USER, GPT], "system": "y"}, "both as"),
    "equal answers": ({"prompt": Q, "chosen": A, "rejected": A}, "are the same"),
    "other question": ({"chosen": [USER, GPT], "rejected": [GPT]}, "differ before the last answer"),
    "other prompt": ({"prompt": "x", "chosen": [USER, GPT], "rejected": [USER, BAD_GPT]}, "does not go on from"),
    "no prompt": ({"chosen": A, "rejected": B}, "there is no `prompt`"),
    "arguments": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{a"}]}]},
        "arguments of a tool call: not valid JSON",
    ),
    "arguments in a list": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
        "not a JSON object",
    ),
    "nameless call": ({"messages": [USER, {"role": "tool_call", "content": "{}"}]}, "without a name"),
    "call of a user": ({"messages": [{**USER, "tool_calls": CALLS}, GPT]}, "tool calls of the user"),
    "uncalled tool": ({"messages": [USER, {"role": "tool", "content": "4"}, GPT]}, "has not called"),
    "tools": ({"messages": [USER, GPT], "tools": "[1]"}, "not a list of objects"),
    "loss": ({"messages": [USER, {**GPT, "loss": "yes"}]}, "`loss` is neither"),
    "weight": ({"messages": [USER, {**GPT, "weight": float("nan")}]}, "`loss_scale` is not a number"),
    "label": ({"prompt": Q, "completion": A, "label": "good"}, "`label` is not a number"),
    "images": ({"query": "<image><image>", "response": A, "images": ["a"]}, "2 times `<image>` for 1 of them"),
    "no path": ({"query": Q, "response": A, "images": [5]}, "image: neither a path"),
    "video twice": ({"query": Q, "response": A, "video": "a", "videos": ["b"]}, "both `videos` and `video`"),
    "box": ({"query": Q, "response": A, "objects": {"bbox": [[1, 2, 3]]}}, "two or four numbers"),
    "box type": ({"query": Q, "response": A, "objects": {"bbox": [], "bbox_type": "x"}}, "`bbox_type` is `x`"),
    "history": ({"query": Q, "response": A, "history": ["x"]}, "a round of `history`"),
    "part": ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "unknown type `smell`"),
}


@pytest.mark.parametrize(("row", "reason"), WRONG.values(), ids=WRONG)
def test_wrong_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read(row)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: "+".join(format.needs))
def test_every_format_is_reached(format: Any) -> None:
    """None is hidden by one before it."""
    from hf_bridge.data.formats import format_of

    found = format_of(frozenset(format.needs))
    assert found is not None and found[0] is format


def test_columns_of_other_names() -> None:
    columns = column_names(["frage=query", "antwort=response"])
    assert read({"frage": Q, "antwort": A}, columns=columns) == PAIR
    mapped = recognise({"text": "x", "query": Q, "answer": A}, Recognition(columns=column_names(["answer=response"])))
    assert (mapped.row, set(mapped.unused)) == (PAIR, {"text"})
    taken = recognise({"query": "old", "frage": Q, "response": A}, Recognition(columns=(("frage", "query"),)))
    assert (taken.row, set(taken.unused)) == (PAIR, {"query"})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (["query"], "names no two columns"),
        (["a=qery"], "did you mean `query`"),
        (["a=query", "b=query"], "two of theirs"),
    ],
)
def test_wrong_names_of_columns(mapping: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        column_names(mapping)


def test_columns_that_nothing_reads() -> None:
    row = {"messages": [{**USER, "name": "Ann"}, GPT], "id": 1, "solution": "4", "score": None}
    found = recognise(row, Recognition(keep=("solution",)))
    assert found.unused == {"id", "messages.name"}
    assert found.row.extra == {"solution": "4"}
    with pytest.raises(Unreadable, match=r"not used: id, messages.name, solution"):
        read(row, strict=True)


def test_questions_alone_where_they_will_do() -> None:
    assert read({"prompt": Q}, answers=False) == Row(messages=(ASKED,))


def test_self_cognition() -> None:
    row = {"query": "Who are you?", "response": "{{NAME}} by {{AUTHOR}}", "tag": "zh"}
    who = identity(["小黄", "Huang"], ["魔搭", "ModelScope"])
    assert read(row, identity=who).messages[1].content == "小黄 by 魔搭"
    assert read({**row, "tag": "en"}, identity=who).messages[1].content == "Huang by ModelScope"
    assert read(row, identity=identity(["X"], ["Y"])).messages[1].content == "X by Y"
    with pytest.raises(Unreadable, match="`tag` is `fr`"):
        read({**row, "tag": "fr"}, identity=who)
    with pytest.raises(UserError, match="1 names and 0 authors"):
        identity(["X"], [])
