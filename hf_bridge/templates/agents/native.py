"""Formats of model families with tokens or a notation of their own: GLM-4, Llama, DeepSeek, Mistral, Granite, Kimi."""

import re
from collections.abc import Sequence

from hf_bridge.data.row import ToolCall
from hf_bridge.templates.agents.format import (
    AgentFormat,
    Tool,
    arguments_of,
    arguments_text,
    function_of,
    to_indented_json,
    to_json,
    wrapped,
)
from hf_bridge.templates.agents.readers import from_groups, from_json, from_python, to_python


def _json_object(call: ToolCall, arguments: str, more: str = "") -> str:
    text = arguments_text(call)
    value = text if isinstance(arguments_of(text), dict) else to_json(text)
    return f'{{"name": {to_json(call.name)}, "{arguments}": {value}{more}}}'


def _indented(tool: Tool) -> str:
    return to_indented_json(wrapped(tool))


def _bare_indented(tool: Tool) -> str:
    return to_indented_json(function_of(tool))


def _line(tool: Tool) -> str:
    return to_json(wrapped(tool))


def _glm_tool(tool: Tool) -> str:
    function = function_of(tool)
    used = "在调用上述函数时，请使用 Json 格式表示调用的参数。"
    return f"## {function.get('name', '')}\n\n{to_indented_json(function)}\n{used}"


def _glm_calls(calls: Sequence[ToolCall]) -> str:
    return "<|assistant|>".join(f"{call.name}\n{arguments_text(call)}" for call in calls)


GLM4 = AgentFormat(
    name="glm4",
    preamble="# 可用工具\n\n{tools}",
    tool=_glm_tool,
    between_tools="\n\n",
    calls=_glm_calls,
    found=re.compile(
        r"(?:^|<\|assistant\|>)(?P<name>[\w.-]+)\n(?P<arguments>\{.*?\})(?=<\|assistant\|>|\s*\Z)", re.DOTALL
    ),
    read=from_groups,
    between_responses="<|observation|>\n",
    between_content="<|assistant|>",
)


def _llama_calls(calls: Sequence[ToolCall]) -> str:
    return "; ".join(_json_object(call, "parameters") for call in calls)


LLAMA3 = AgentFormat(
    name="llama3",
    preamble=(
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
        'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
        "argument name and its value}.Do not use variables.\n\n{tools}\n\n"
    ),
    tool=_indented,
    between_tools="\n\n",
    place="user",
    calls=_llama_calls,
    found=re.compile(r'(?:; )?(?P<json>\{"name": .*?\})(?=; \{"name"|\s*\Z)', re.DOTALL),
    read=from_json("parameters"),
    response="{content}",
)

LLAMA4 = AgentFormat(
    name="llama4",
    preamble=(
        "You can call functions. Where one or more of them help, answer with the calls alone, as a list in Python's "
        "notation:\n[name_1(parameter_1=value_1, parameter_2=value_2), name_2(parameter=value)]\n"
        "These are the functions:\n[{tools}]"
    ),
    tool=_bare_indented,
    between_tools=",\n",
    calls=to_python,
    found=re.compile(r"(?P<python>\[[A-Za-z_][\w.]*\(.*\)\])\s*\Z", re.DOTALL),
    read=from_python,
)


def _deepseek_calls(calls: Sequence[ToolCall]) -> str:
    texts = (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{call.name}\n```json\n{arguments_text(call)}\n```<｜tool▁call▁end｜>"
        for call in calls
    )
    return f"<｜tool▁calls▁begin｜>{chr(10).join(texts)}<｜tool▁calls▁end｜>"


DEEPSEEK = AgentFormat(
    name="deepseek",
    preamble="## Tools\n\nThese functions can be called:\n\n{tools}",
    tool=_line,
    calls=_deepseek_calls,
    found=re.compile(
        r"(?:<｜tool▁calls▁begin｜>|\n)?<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\n]+)\n```json\n"
        r"(?P<arguments>.*?)\n```<｜tool▁call▁end｜>(?:<｜tool▁calls▁end｜>)?",
        re.DOTALL,
    ),
    read=from_groups,
    response="<｜tool▁output▁begin｜>{content}<｜tool▁output▁end｜>",
    between_responses="",
    responses="<｜tool▁outputs▁begin｜>{content}<｜tool▁outputs▁end｜>",
    between_content="",
)


def _mistral_id(number: int) -> str:
    """Mistral's ids have nine letters or digits."""
    return f"{number:09d}"


def _mistral_calls(calls: Sequence[ToolCall]) -> str:
    objects = (_json_object(call, "arguments", f', "id": "{_mistral_id(n)}"') for n, call in enumerate(calls))
    return f"[TOOL_CALLS] [{', '.join(objects)}]"


MISTRAL = AgentFormat(
    name="mistral",
    preamble="[AVAILABLE_TOOLS] [{tools}][/AVAILABLE_TOOLS]",
    tool=_line,
    between_tools=", ",
    place="turn",
    calls=_mistral_calls,
    found=re.compile(r"\[TOOL_CALLS\]\s*(?P<json>\[.*\])", re.DOTALL),
    read=from_json("arguments"),
    response="[TOOL_RESULTS] {content}[/TOOL_RESULTS]",
    between_responses="",
)


def _granite_calls(calls: Sequence[ToolCall]) -> str:
    return f"<|tool_call|>[{', '.join(_json_object(call, 'arguments') for call in calls)}]"


GRANITE = AgentFormat(
    name="granite",
    preamble="<|start_of_role|>available_tools<|end_of_role|>\n{tools}<|end_of_text|>\n",
    tool=_indented,
    between_tools="\n\n",
    place="start",
    calls=_granite_calls,
    found=re.compile(r"<\|tool_call\|>\s*(?P<json>\[.*\])", re.DOTALL),
    read=from_json("arguments"),
    between_content="",
)


def _kimi_calls(calls: Sequence[ToolCall]) -> str:
    texts = (
        f"<|tool_call_begin|>functions.{call.name}:{number}<|tool_call_argument_begin|>{arguments_text(call)}"
        "<|tool_call_end|>"
        for number, call in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{''.join(texts)}<|tool_calls_section_end|>"


KIMI = AgentFormat(
    name="kimi",
    preamble="<|im_system|>tool_declare<|im_middle|>[{tools}]<|im_end|>",
    tool=_line,
    between_tools=", ",
    place="start",
    calls=_kimi_calls,
    found=re.compile(
        r"(?:<\|tool_calls_section_begin\|>)?<\|tool_call_begin\|>functions\.(?P<name>[^:]+):\d+"
        r"<\|tool_call_argument_begin\|>(?P<arguments>.*?)<\|tool_call_end\|>(?:<\|tool_calls_section_end\|>)?",
        re.DOTALL,
    ),
    read=from_groups,
    between_content="",
)
