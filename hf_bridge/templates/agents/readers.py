"""Calls from what a model wrote, for formats that share a notation."""

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from hf_bridge.data.row import ToolCall
from hf_bridge.templates.agents.format import arguments_of


def from_json(arguments: str) -> Callable[[re.Match[str]], Sequence[ToolCall]]:
    """Reads `{"name": …, arguments: …}`, alone or several in a list, from the group `json`."""

    def read(match: re.Match[str]) -> Sequence[ToolCall]:
        try:
            value = json.loads(match["json"])
        except ValueError:
            return ()
        objects = value if isinstance(value, list) else [value]
        return tuple(map(call, objects)) if objects and all(map(is_call, objects)) else ()

    def is_call(value: Any) -> bool:
        return isinstance(value, dict) and isinstance(value.get("name"), str) and arguments in value

    def call(value: dict[str, Any]) -> ToolCall:
        given = value[arguments]
        return ToolCall(value["name"], given if isinstance(given, dict) else _as_text(given))

    return read


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def from_groups(match: re.Match[str]) -> Sequence[ToolCall]:
    """Reads the groups `name` and `arguments`."""
    return (ToolCall(match["name"].strip(), arguments_of(match["arguments"].strip())),)


def from_python(match: re.Match[str]) -> Sequence[ToolCall]:
    """Reads `[name(key=value), …]` from the group `python`."""
    try:
        tree = ast.parse(match["python"].strip(), mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List) else [tree]
        return tuple(map(_python_call, nodes))
    except (SyntaxError, ValueError):
        return ()


def _python_call(node: ast.AST) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    if len(named) != len(node.keywords):
        raise ValueError("arguments without names")
    return ToolCall(ast.unparse(node.func), named)


def to_python(calls: Sequence[ToolCall]) -> str:
    """`[name(key=value), …]`; arguments that are text stay text."""
    return f"[{', '.join(map(_python_text, calls))}]"


def _python_text(call: ToolCall) -> str:
    if isinstance(call.arguments, str):
        return f"{call.name}({call.arguments})"
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"
