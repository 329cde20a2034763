"""Formats in plain words: ReAct (Yao et al. 2022) and ToolBench (Qin et al. 2023)."""

import re
from collections.abc import Sequence

from hf_bridge.data.row import ToolCall
from hf_bridge.templates.agents.format import AgentFormat, Tool, arguments_text, function_of, to_json
from hf_bridge.templates.agents.readers import from_groups

ACTION = re.compile(
    r"^Action:[ \t]*(?P<name>[^\n]+)\nAction Input:[ \t]*(?P<arguments>.*?)(?=\n(?:Action|Thought|Observation):|\Z)",
    re.DOTALL | re.MULTILINE,
)


def _described(tool: Tool) -> str:
    function = function_of(tool)
    parameters = to_json(function.get("parameters", {}))
    return f"{function.get('name', '')}: {function.get('description', '')} Parameters: {parameters}"


def _as_json(tool: Tool) -> str:
    return to_json(function_of(tool))


def _calls(calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"Action: {call.name}\nAction Input: {arguments_text(call)}" for call in calls)


REACT = AgentFormat(
    name="react",
    preamble=(
        "These tools can be called to answer the question:\n\n{tools}\n\nWrite in this form:\n\n"
        "Thought: what to do next\nAction: the tool to call, one of [{names}]\n"
        "Action Input: its arguments as a JSON object\nObservation: what the tool answers\n"
        "... (these four repeat as often as needed)\nThought: the answer is known\nFinal Answer: the answer"
    ),
    tool=_described,
    between_tools="\n\n",
    calls=_calls,
    found=ACTION,
    read=from_groups,
    response="Observation: {content}",
)

TOOLBENCH = AgentFormat(
    name="toolbench",
    preamble=(
        "The task is solved step by step with functions. At each step give a Thought, then the function to call and "
        "its arguments:\nThought:\nAction:\nAction Input:\n\nThe answer of the function follows, and the next step "
        "begins. The last step calls the function Finish with the answer. These functions can be called:\n{tools}"
    ),
    tool=_as_json,
    calls=_calls,
    found=ACTION,
    read=from_groups,
)
