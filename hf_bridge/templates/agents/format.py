"""How a model is told of its tools, writes its calls and reads their answers: an axis apart from the template."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hf_bridge.data.row import ToolCall

Tool = dict[str, Any]


def to_json(value: Any) -> str:
    """JSON as chat templates write it: spaces behind signs, every letter as it is."""
    return json.dumps(value, ensure_ascii=False)


def to_indented_json(value: Any) -> str:
    """The same over several lines."""
    return json.dumps(value, ensure_ascii=False, indent=4)


def function_of(tool: Tool) -> Tool:
    """What a tool does, without OpenAI's wrapper `{"type": "function", "function": …}`."""
    function: Tool = tool.get("function", tool)
    return function


def wrapped(tool: Tool) -> Tool:
    """The same tool with the wrapper."""
    return tool if "function" in tool else {"type": "function", "function": tool}


def arguments_text(call: ToolCall) -> str:
    """A call's arguments as JSON, or as the model wrote them."""
    return call.arguments if isinstance(call.arguments, str) else to_json(call.arguments)


def arguments_of(text: str) -> dict[str, Any] | str:
    """Arguments from what a model wrote: parsed where it is a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


@dataclass(frozen=True)
class AgentFormat:
    """One way of writing tools, calls and answers.

    Attributes:
        name: what `--agent-format` calls it.
        preamble: tells the model of its tools; `{tools}` are they, `{names}` their names.
        tool: one tool as text.
        between_tools: between two of them.
        place: of the preamble: behind the system's text, before the first user message's text, before the first
            user's turn, or before everything but the prefix.
        calls: all calls of one turn as text.
        found: one match for every text in which there are calls.
        read: the calls in such a match; none where it is no call after all.
        response: one tool's answer with `{content}`.
        between_responses: between answers to calls of one turn.
        responses: around all of them, with `{content}`.
        between_content: between what the assistant says and its first call.
    """

    name: str
    preamble: str
    tool: Callable[[Tool], str]
    calls: Callable[[Sequence[ToolCall]], str]
    found: re.Pattern[str]
    read: Callable[[re.Match[str]], Sequence[ToolCall]]
    between_tools: str = "\n"
    place: Literal["system", "user", "turn", "start"] = "system"
    response: str = "{content}"
    between_responses: str = "\n"
    responses: str = "{content}"
    between_content: str = "\n"

    def tools_text(self, tools: Sequence[Tool]) -> str:
        """The preamble for `tools`."""
        names = ", ".join(str(function_of(tool).get("name", "")) for tool in tools)
        listed = self.between_tools.join(map(self.tool, tools))
        return self.preamble.replace("{names}", names).replace("{tools}", listed)

    def responses_text(self, contents: Sequence[str]) -> str:
        """Answers of tools, in the order of the calls."""
        texts = (self.response.replace("{content}", content) for content in contents)
        return self.responses.replace("{content}", self.between_responses.join(texts))

    def parse(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """What an answer says apart from its calls, and its calls.

        What looks like a call but is none stays in the text.
        """
        calls: list[ToolCall] = []
        rest, position = [], 0
        for match in self.found.finditer(text):
            if read := self.read(match):
                calls += read
                rest.append(text[position : match.start()])
                position = match.end()
        return ("".join([*rest, text[position:]]).strip() if calls else text), tuple(calls)
