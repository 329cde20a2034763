"""The metrics of agents on cases that were counted by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_bridge.experiments.agent_metrics import argument_f1, score_files
from hf_bridge.methods.rouge import rouge_l
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main

TOOLS = [{"name": "search"}, {"type": "function", "function": {"name": "weather"}}, {"name": "Finish"}]


def call(tool: str, thought: str = "t", **arguments: Any) -> str:
    return f"Thought: {thought}\nAction: {tool}\nAction Input: {json.dumps(arguments, indent=1)}"


def finish(answer: str) -> str:
    return call("Finish", return_type="give_answer", final_answer=answer)


GIVE_UP = call("Finish", return_type="give_up_and_restart")

CASES = [
    # reference, prediction: what counts
    (call("search", q="a", n=1), call("search", q="a", n=1)),  # plan, act, F1 1
    (call("search", q="a", n=1), call("search", q="b")),  # plan, act; m = ½: 2·½ ÷ (1 + 2) = ⅓
    (call("search", q="a"), call("weather", q="a")),  # plan
    (call("weather"), call("weather")),  # plan, act, F1 1
    (call("weather", city="x"), call("browse", city="x")),  # plan; a hallucination
    (call("search", q="a"), "The answer is a."),  # no call is a plan to call a tool
    (call("search", q="a"), finish("a")),  # nothing
    (finish("it is warm in Rome"), finish("it is cold in Rome")),  # plan; 4 of 5 words: ROUGE-L 0.8
    (finish("it is warm"), call("weather")),  # nothing; ROUGE-L 0
    (GIVE_UP, GIVE_UP),  # plan
    (GIVE_UP, finish("no idea")),  # nothing
    (call("invented"), call("search")),  # left out
]


def rows(*cases: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"target": target, "predictions": written, "tools": TOOLS} for target, written in cases]


def written(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


def test_cases_counted_by_hand(tmp_path: Path) -> None:
    scores = score_files([written(tmp_path / "predictions.jsonl", rows(*CASES))])
    assert (scores.rows, scores.left_out) == (11, 1)
    assert scores.plan_em == pytest.approx(100 * 8 / 11)
    assert scores.act_em == pytest.approx(100 * 3 / 7)
    assert scores.hallu_rate == pytest.approx(100 * 1 / 11)
    assert scores.avg_f1 == pytest.approx(100 * (1 + 1 / 3 + 1) / 7)
    assert scores.rouge_l == pytest.approx(100 * (0.8 + 0) / 2)


def test_another_format_and_other_names_of_columns(tmp_path: Path) -> None:
    text = '<tool_call>\n{"name": "search", "arguments": {"q": "a"}}\n</tool_call>'
    row = {"labels": text, "response": text, "tools": json.dumps(TOOLS)}
    scores = score_files([written(tmp_path / "a.jsonl", [row])], form="hermes")
    assert (scores.act_em, scores.avg_f1, scores.rouge_l) == (100, 100, None)


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        ({}, {}, 1.0),
        ({"a": 1}, {}, 0.0),
        ("no JSON", {"a": 1}, 0.0),
        ({"a": 1, "b": 2}, {"a": 1}, 2 / 3),  # precision ½, recall 1
        ({"a": "1"}, {"a": 1}, 0.5),
    ],
)
def test_f1_of_arguments(predicted: Any, reference: dict[str, Any], expected: float) -> None:
    assert argument_f1(predicted, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("the cat sat", "The cat, sat.", 1.0),
        ("a b c d", "a c", 2 * 0.5 * 1 / 1.5),
        ("今天很好", "今天好", 2 * 0.75 * 1 / 1.75),  # 3 of 4 signs
        ("größer", "groß", 0.0),
        ("", "a", 0.0),
    ],
)
def test_rouge_l(one: str, other: str, expected: float) -> None:
    assert rouge_l(one, other) == pytest.approx(expected)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    good = rows((GIVE_UP, GIVE_UP))[0]
    file = written(
        tmp_path / "p.jsonl", [good, {**good, "target": None}, {**good, "tools": 1}, {**good, "labels": "x"}]
    )
    with pytest.raises(UserError) as raised:
        score_files([file])
    for reason in ("p.jsonl:2: none of target, labels, reference", "p.jsonl:3: `tools`", "p.jsonl:4: both `target`"):
        assert reason in str(raised.value)
    assert score_files([file], on_bad_row="skip").rows == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "p.jsonl", rows(*CASES))
    assert main(["bridge", "score-agent", str(file), "--json", str(tmp_path / "scores.json")]) == 0
    assert "72.73" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["rows"] == 11
    assert main(["bridge", "score-agent", str(file), "--agent-format", "tolbench"]) == 2
    assert "did you mean `toolbench`?" in capsys.readouterr().err


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_bridge.methods import rouge

    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    rouge._scorer.cache_clear()
    with pytest.raises(UserError, match="rouge-score"):
        rouge_l("a", "b")
    rouge._scorer.cache_clear()
