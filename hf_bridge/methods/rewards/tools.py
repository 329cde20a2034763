"""Whether the tools that an answer calls are those of the row's own answer. Torch-free."""

from hf_bridge.data.row import Row, ToolCall
from hf_bridge.methods.rewards.reward import Answer, OfOne, expected_answer
from hf_bridge.templates.agents.format import arguments_of, arguments_text
from hf_bridge.templates.agents.registry import agent_format


def tools(format: str = "hermes") -> OfOne:
    """Σ of how well each call is met ÷ the larger number of calls; a row without an answer of its own gets None.

    A call is met by one of the same name: ½ for that, and ½ times the share of arguments (of either) that are the same.
    Each is met once, best pairs first; the order of calls does not matter. Where neither calls a tool it is 1.

    Args:
        format: how calls are written, as in `--agent-format`.
    """
    written = agent_format(format)

    def score(answer: Answer, row: Row) -> float | None:
        wanted = expected_answer(row)
        return None if wanted is None else agreement(written.parse(answer.text)[1], wanted.tool_calls)

    return score


def agreement(calls: tuple[ToolCall, ...], wanted: tuple[ToolCall, ...]) -> float:
    """How well `calls` are those that are `wanted`, from 0 to 1."""
    if not calls and not wanted:
        return 1.0
    pairs = sorted(
        ((_alike(call, other), n, m) for n, call in enumerate(calls) for m, other in enumerate(wanted)),
        key=lambda pair: -pair[0],
    )
    total, met = 0.0, set[tuple[str, int]]()
    for likeness, n, m in pairs:
        if not met & {("call", n), ("wanted", m)}:
            total += likeness
            met |= {("call", n), ("wanted", m)}
    return total / max(len(calls), len(wanted))


def _alike(one: ToolCall, other: ToolCall) -> float:
    if one.name != other.name:
        return 0.0
    first, second = (arguments_of(arguments_text(call)) for call in (one, other))
    if isinstance(first, str) or isinstance(second, str):
        return 0.5 + 0.5 * (first == second)
    names = first.keys() | second.keys()
    equal = sum(name in first and name in second and first[name] == second[name] for name in names)
    return 0.5 + 0.5 * (equal / len(names) if names else 1.0)
