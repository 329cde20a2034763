"""Formats that set calls between tags: Hermes, Qwen and GLM-4.5."""

import re
from collections.abc import Sequence

from hf_bridge.data.row import ToolCall
from hf_bridge.templates.agents.format import AgentFormat, Tool, arguments_of, arguments_text, to_json, wrapped
from hf_bridge.templates.agents.readers import from_json

TAGGED = re.compile(r"<tool_call>\s*(?P<json>\{.*?\})\s*</tool_call>", re.DOTALL)


def _json_tool(tool: Tool) -> str:
    return to_json(wrapped(tool))


def _json_calls(calls: Sequence[ToolCall]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": {to_json(call.name)}, "arguments": {_json_arguments(call)}}}\n</tool_call>'
        for call in calls
    )


def _json_arguments(call: ToolCall) -> str:
    """Text that is no JSON object goes in as a JSON string, or it could not be read back."""
    text = arguments_text(call)
    return text if isinstance(arguments_of(text), dict) else to_json(text)


QWEN = AgentFormat(
    name="qwen",
    preamble=(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    ),
    tool=_json_tool,
    calls=_json_calls,
    found=TAGGED,
    read=from_json("arguments"),
    response="<tool_response>\n{content}\n</tool_response>",
)

HERMES = AgentFormat(
    name="hermes",
    preamble=(
        "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML "
        "tags. You may call one or more functions to assist with the user query. Don't make assumptions about what "
        "values to plug into functions. Here are the available tools: <tools> {tools} </tools> For each function call "
        "return a json object with function name and arguments within <tool_call></tool_call> XML tags as follows:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n</tool_call>'
    ),
    tool=_json_tool,
    calls=_json_calls,
    found=TAGGED,
    read=from_json("arguments"),
    response="<tool_response>\n{content}\n</tool_response>",
)


def _glm_calls(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"<tool_call>{call.name}\n{_glm_arguments(call)}</tool_call>" for call in calls)


def _glm_arguments(call: ToolCall) -> str:
    if isinstance(call.arguments, str):
        return f"{call.arguments}\n"
    return "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value if isinstance(value, str) else to_json(value)}</arg_value>\n"
        for key, value in call.arguments.items()
    )


def _glm_read(match: re.Match[str]) -> Sequence[ToolCall]:
    pairs = re.findall(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", match["body"], re.DOTALL)
    body = match["body"].strip()
    arguments = {key: _glm_value(value) for key, value in pairs} if pairs or not body else body
    return (ToolCall(match["name"].strip(), arguments),)


def _glm_value(text: str) -> object:
    """A text and the JSON of a number are written alike; what reads as JSON is taken for it."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


GLM4_5 = AgentFormat(
    name="glm4_5",
    place="start",
    preamble=(
        "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{tools}\n</tools>\n\n"
        "For each function call, output the function name and arguments within the following XML format:\n"
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
        "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>"
    ),
    tool=_json_tool,
    calls=_glm_calls,
    found=re.compile(r"<tool_call>(?P<name>[^\n<{]+)\n(?P<body>.*?)</tool_call>", re.DOTALL),
    read=_glm_read,
    response="<tool_response>\n{content}\n</tool_response>",
)
