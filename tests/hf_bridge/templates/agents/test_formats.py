"""Agent formats: one conversation in every one, and calls read back from what they write."""

import json
from typing import Any

import pytest

from hf_bridge.data.row import Message, Row, ToolCall
from hf_bridge.templates.agents.registry import FORMATS, agent_format
from hf_bridge.templates.encoding import encoder
from swift_mega.base.errors import UserError

TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}

CALLS = [
    (ToolCall("get_weather", {"city": "Paris"}),),
    (ToolCall("get_weather", {"city": "Paris", "days": 2}), ToolCall("get_time", {"zone": "MEZ"})),
    (ToolCall("write", {"text": 'says "{x}" ]) 你好\nAnd: {"name": "no"}', "deep": {"list": [1, 2.5, None, True]}}),),
    (ToolCall("no_arguments", {}),),
]

ROW = Row(
    messages=(
        Message("user", "The weather?"),
        Message("assistant", "", (CALLS[1])),
        Message("tool", "18 degrees"),
        Message("tool", "noon"),
        Message("assistant", "Sunny"),
    ),
    tools=(TOOL, {"type": "function", "function": {"name": "get_time"}}),
)


@pytest.mark.parametrize("calls", CALLS, ids=["one", "two", "signs", "empty"])
@pytest.mark.parametrize("name", FORMATS)
def test_calls_are_read_back(name: str, calls: tuple[ToolCall, ...]) -> None:
    text = FORMATS[name].calls(calls)
    assert FORMATS[name].parse(text) == ("", calls)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"glm4", "llama3"}))
def test_what_is_said_beside_a_call_is_kept(name: str) -> None:
    written = FORMATS[name]
    said = "Thought: I look." if name in ("react", "toolbench") else "I look."
    assert written.parse(said + (written.between_content or "") + written.calls(CALLS[0])) == (said, CALLS[0])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "Sunny.",
        "",
        "<tool_call>\n{broken\n</tool_call>",
        '{"name": 1}',
        "[x for x in y]",
        "[TOOL_CALLS] [1]",
        "Action:",
    ],
)
def test_what_is_no_call_stays(name: str, text: str) -> None:
    assert FORMATS[name].parse(text) == (text, ())


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"glm4_5", "llama4"}))
def test_arguments_as_the_model_wrote_them(name: str) -> None:
    calls = (ToolCall("run", "not {json"),)
    if name == "glm4":
        pytest.skip("GLM-4's calls are told from text by their JSON")
    assert FORMATS[name].parse(FORMATS[name].calls(calls)) == ("", calls)


@pytest.mark.parametrize("name", FORMATS)
def test_one_row_in_every_format(name: str, tokenizer: Any) -> None:
    encoded = encoder(tokenizer, "chatml", agent_format=name).encode(ROW)
    text = tokenizer.decode(encoded.input_ids)
    assert FORMATS[name].tools_text(ROW.tools) in text
    assert FORMATS[name].calls(CALLS[1]) in text
    assert text.index("18 degrees") < text.index("noon") < text.index("Sunny")
    assert text.count("get_time") >= 2 and text.count("Weather of a city") == 1
    labels = [label for label in encoded.labels if label >= 0]
    assert tokenizer.decode(labels) == f"{FORMATS[name].calls(CALLS[1])}<|im_end|>Sunny<|im_end|>"


@pytest.mark.parametrize("name", ["qwen", "hermes", "llama3", "mistral", "granite", "kimi", "glm4_5"])
def test_tools_are_listed_as_json(name: str) -> None:
    listed = FORMATS[name].tools_text([TOOL])
    decoder = json.JSONDecoder()
    found = [
        value
        for start, sign in enumerate(listed)
        if sign == "{" and isinstance(value := decoded(decoder, listed, start), dict)
    ]
    assert {"type": "function", "function": TOOL} in found


def decoded(decoder: json.JSONDecoder, text: str, start: int) -> Any:
    try:
        return decoder.raw_decode(text, start)[0]
    except ValueError:
        return None


def test_an_unknown_format_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean `hermes`"):
        agent_format("hermess")
