r"""How well a model uses tools: the metrics of SWIFT's Tables 6 to 11, on rows as ToolBench-Static has them.

A row is one step of a task: the reference for it, what the model wrote, and the tools that it could call.

    {"target": "Thought: …\nAction: search\nAction Input: {…}", "predictions": "…", "tools": [{"name": "search", …}]}

The SWIFT paper (arXiv 2408.05517) takes its metrics from ToolBench's static evaluation, which are those of α-UMi
(Shen et al. 2024, arXiv 2401.07324, section 4.1); ModelScope-Agent (arXiv 2309.00986), which it refers to for the
data, has Action EM, argument F1 and ROUGE-L in the same sense. All are percentages:

- Plan.EM: rows in which the model plans what the reference does: to call a tool, to finish with an answer, or to give
  up (`Finish` without an answer). A text without a call is a plan to call a tool, of none.
- Act.EM: of the rows whose reference calls a tool, those in which the model calls the same one.
- HalluRate: rows in which the model calls a tool that it was not offered.
- Avg.F1: of the rows whose reference calls a tool, the mean F1 of the arguments; 0 for another tool. An argument with
  the same value counts 1, one with the same name alone ½; with m their sum, precision is m ÷ arguments of the model,
  recall m ÷ arguments of the reference. No arguments in both is 1.
- R-L: of the rows whose reference finishes, the mean ROUGE-L of the final answers; 0 where the model gives none.

Rows whose reference calls a tool that is not offered say nothing about the model; they are left out and counted.
EvalScope's published script also leaves out references that give up unless the model does so, too, which Plan.EM here
does not do.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hf_bridge.data.messages import json_of
from hf_bridge.data.row import ToolCall
from hf_bridge.methods.rouge import rouge_l
from hf_bridge.templates.agents.format import AgentFormat, function_of
from hf_bridge.templates.agents.registry import agent_format
from swift_mega.base.console import counted
from swift_mega.base.errors import UserError
from swift_mega.base.readers import BadRow, BadRows, Corpus, OnBadRow, Unreadable, records

FINISH = "Finish"
"""The tool that ends a task in ToolBench, with `return_type` and `final_answer`."""

COLUMNS = {
    "reference": ("target", "labels", "reference"),
    "prediction": ("predictions", "response", "prediction"),
    "tools": ("tools",),
}
"""What a row has, and the names for it."""

Plan = Literal["call", "finish", "give up"]


class Step(NamedTuple):
    """What a text does.

    Attributes:
        call: the last one in it; None: there is none.
        answer: where it finishes.
    """

    plan: Plan
    call: ToolCall | None = None
    answer: str = ""


class Example(NamedTuple):
    """A row, read."""

    reference: Step
    prediction: Step
    tools: frozenset[str]


@dataclass(frozen=True)
class AgentScores:
    """Percentages as in the module's text; None where no row counts.

    Attributes:
        rows: that count.
        left_out: whose reference calls a tool that is not offered.
        unread: of those that count for Avg.F1, left out there as the reference's arguments are no JSON object.
    """

    plan_em: float | None
    act_em: float | None
    hallu_rate: float | None
    avg_f1: float | None
    rouge_l: float | None
    rows: int
    left_out: int = 0
    unread: int = 0

    def __str__(self) -> str:
        names = ("Plan.EM", "Act.EM", "HalluRate", "Avg.F1", "R-L")
        values = (self.plan_em, self.act_em, self.hallu_rate, self.avg_f1, self.rouge_l)
        cells = ["–" if value is None else f"{value:.2f}" for value in values]
        table = "  ".join(map("{:>9}".format, names)) + "\n" + "  ".join(map("{:>9}".format, cells))
        notes = [counted(self.rows, "row")]
        notes += [f"{self.left_out:,} left out: the reference calls a tool that is not offered"] * bool(self.left_out)
        notes += [f"{self.unread:,} not in Avg.F1: the reference's arguments are no JSON object"] * bool(self.unread)
        return f"{table}\n{'; '.join(notes)}"


def step(text: str, form: AgentFormat) -> Step:
    """What a text of the assistant does, as `form` has its calls."""
    _, calls = form.parse(text)
    if not calls:
        return Step("call")
    call = calls[-1]
    if call.name != FINISH:
        return Step("call", call)
    given = call.arguments if isinstance(call.arguments, dict) else {}
    if given.get("return_type") != "give_answer":
        return Step("give up", call)
    return Step("finish", call, str(given.get("final_answer", "")))


def argument_f1(predicted: dict[str, Any] | str, reference: dict[str, Any]) -> float:
    """F1 of a call's arguments, from 0 to 1; those that are no JSON object get 0."""
    if not isinstance(predicted, dict):
        return 0.0
    if not predicted and not reference:
        return 1.0
    matched = sum(1.0 if predicted[name] == reference[name] else 0.5 for name in reference if name in predicted)
    # 2·p·r ÷ (p + r) with p = m/a and r = m/b is 2·m ÷ (a + b).
    return 2 * matched / (len(predicted) + len(reference))


def score(examples: Iterable[Example]) -> AgentScores:
    """The metrics of all examples together."""
    given = list(examples)
    kept = [one for one in given if one.reference.call is None or one.reference.call.name in one.tools]
    calls = [one for one in kept if one.reference.plan == "call"]
    answers = [one for one in kept if one.reference.plan == "finish"]
    readable = [one for one in calls if isinstance(_arguments(one.reference), dict)]
    return AgentScores(
        plan_em=_percent(one.prediction.plan == one.reference.plan for one in kept),
        act_em=_percent(_same_tool(one) for one in calls),
        hallu_rate=_percent(
            one.prediction.call is not None and one.prediction.call.name not in one.tools for one in kept
        ),
        avg_f1=_percent(_f1(one) for one in readable),
        rouge_l=_percent(rouge_l(one.prediction.answer, one.reference.answer) for one in answers),
        rows=len(kept),
        left_out=len(given) - len(kept),
        unread=len(calls) - len(readable),
    )


def score_files(inputs: list[str | Path], form: str = "toolbench", on_bad_row: OnBadRow = "raise") -> AgentScores:
    """The metrics of the rows in files of any format that the data readers know.

    Args:
        inputs: files, folders or globs of rows with the columns of `COLUMNS`.
        form: name of the agent format in which calls are written.
        on_bad_row: a row that lacks something: stop with a report of all of them, or leave it out of the metrics.

    Raises:
        UserError: bad rows, no rows, a file that cannot be read, a format that does not exist.
    """
    bad = BadRows()
    found = list(_examples(Corpus([str(one) for one in inputs], text_key=None), agent_format(form), bad))
    bad.judge(on_bad_row)
    if not found:
        raise UserError(f"{', '.join(map(str, inputs))}: there is no row to score.", "Each row is one step of a task.")
    return score(found)


def _examples(corpus: Corpus, form: AgentFormat, bad: BadRows) -> Iterator[Example]:
    for chunk in corpus.chunks():
        for record in records(chunk):
            if isinstance(record, BadRow):
                bad.add([record])
                continue
            try:
                yield example(record.values, form)
            except Unreadable as error:
                bad.add([BadRow(str(error), record.where)])


def example(values: Mapping[str, Any], form: AgentFormat) -> Example:
    """A row by its columns.

    Raises:
        Unreadable: one is missing, or not what it should be.
    """
    reference, prediction = (_text(values, name) for name in ("reference", "prediction"))
    tools = _column(values, "tools")
    tools = json_of(tools, "`tools`") if isinstance(tools, str) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unreadable("`tools` is not a list of objects")
    names = frozenset(str(function_of(tool).get("name")) for tool in tools) | {FINISH}
    return Example(step(reference, form), step(prediction, form), names)


def _column(values: Mapping[str, Any], column: str) -> Any:
    names = COLUMNS[column]
    there = [name for name in names if values.get(name) is not None]
    if len(there) != 1:
        raise Unreadable(f"both `{there[0]}` and `{there[1]}`" if there else f"none of {', '.join(names)}")
    return values[there[0]]


def _text(values: Mapping[str, Any], column: str) -> str:
    value = _column(values, column)
    if not isinstance(value, str):
        raise Unreadable(f"the {column} is not text")
    return value


def _arguments(taken: Step) -> dict[str, Any] | str:
    return {} if taken.call is None else taken.call.arguments


def _same_tool(one: Example) -> bool:
    names = [None if taken.call is None else taken.call.name for taken in (one.reference, one.prediction)]
    return names[0] == names[1]


def _f1(one: Example) -> float:
    reference = _arguments(one.reference)
    assert isinstance(reference, dict)
    return argument_f1(_arguments(one.prediction), reference) if _same_tool(one) else 0.0


def _percent(shares: Iterable[float]) -> float | None:
    values = list(shares)
    return 100 * sum(values) / len(values) if values else None
