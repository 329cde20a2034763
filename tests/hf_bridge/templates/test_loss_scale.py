"""Weights of the loss, against weights counted by hand letter by letter."""

from pathlib import Path
from typing import Any

import pytest

from hf_bridge.data.row import Message, Row
from hf_bridge.templates.encoding import encoder
from hf_bridge.templates.loss_scale import LossScale, read_rule
from swift_mega.base.errors import UserError

ANSWER = Message("assistant", "")

REACT = "Thought: look\nAction: get\nAction Input: {}\nObservation: 18\nFinal Answer: warm"


def spelled(words: str, text: str, query: str = "") -> str:
    """The weight of every letter of `text`, as digits."""
    return "".join(f"{weight:g}" * len(piece) for piece, weight in LossScale.parse(words).spans(text, query, ANSWER))


def by_hand(*pieces: tuple[str, int]) -> tuple[str, str]:
    return "".join(text for text, _ in pieces), "".join(str(weight) * len(text) for text, weight in pieces)


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        ("default", [("Action: get", 1)]),
        (
            "agent",  # Table 14 of the paper
            [
                ("Thought: look\n", 1),
                ("Action:", 3),
                (" get\n", 3),
                ("Action Input:", 3),
                (" {}\n", 3),
                ("Observation:", 2),
                (" 18\nFinal Answer: warm", 1),
            ],
        ),
        ("agent", [("Name: a Tool: b Command c Arguments: d", 3)]),
        (
            "react",
            [("Thought: look\n", 1), ("Action: get\nAction Input: {}\n", 3), ("Observation:", 2), (" 18\n", 1)],
        ),
        ("react", [("Action: get\n", 3), ("Final Answer: warm", 1)]),
        ("ignore_empty_think", [("<think>\n\n</think>\n\n", 0), ("Hi", 1)]),
        ("ignore_empty_think", [("<think>\nHm\n</think>\n\nHi", 1)]),
        ("ignore_empty_think+agent", [("<think></think>", 0), ("see ", 1), ("Action: x", 3)]),
        ("agent+agent", [("Action:", 9)]),
    ],
)
def test_patterns(words: str, pieces: list[tuple[str, int]]) -> None:
    text, weights = by_hand(*pieces)
    assert spelled(words, text) == weights


def test_the_paper_weighs_answers_to_some_queries_whole() -> None:
    assert spelled("agent", "get", "Now do the tool selection.") == "333"
    assert spelled("agent", "get", "What is the parameter value?") == "333"
    assert spelled("agent", "get", "Hello") == "111"


def test_a_file_of_patterns(tmp_path: Path) -> None:
    rule = tmp_path / "rule.yaml"
    rule.write_text('response: {"A\\\\d": [2, 0.5], "B": 4}\nquery: {"why": 5}\n')
    text, weights = "xA1yyBz", "1" + "22" + "0.50.5" + "4" + "1"
    assert spelled(str(rule), text) == weights
    assert spelled(str(rule), "no", "Why?") == "55"
    (tmp_path / "rule.json").write_text('{"response": {"B": [0, 0]}}')
    assert spelled(str(tmp_path / "rule.json"), "aBc") == "100"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("responses: {a: 1}", "no part `responses`"),
        ("response: [a]", r"`response` is \['a'\]"),
        ("response: {a: -1}", "the weight of `a` under `response` is -1"),
        ("response: {a: .nan}", "the weight of `a` under `response` is nan"),
        ("response: {a: [1, 2, 3]}", r"is \[1, 2, 3\]"),
        ("query: {a: [1, 2]}", r"under `query` is \[1, 2\]"),
        ("response: {'(': 1}", r"`\(` is no regular expression"),
        ("response: {a: yes}", "is True"),
    ],
)
def test_wrong_files(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "rule.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        read_rule(tmp_path / "rule.yaml")


def test_an_unknown_rule_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean `last_round`"):
        LossScale.parse("last_rond+agent")


def test_choices() -> None:
    messages = [Message("user"), ANSWER, Message("user"), ANSWER, Message("tool"), ANSWER]
    assert LossScale("default").of_messages(messages) == [0, 1, 0, 1, 0, 1]
    assert LossScale("last_round").of_messages(messages) == [0, 0, 0, 1, 0, 1]
    assert LossScale("all").of_messages(messages) == [1] * 6


def test_weights_reach_the_tokens(tokenizer: Any) -> None:
    row = Row((Message("user", "Hello"), Message("assistant", REACT)))
    encoded = encoder(tokenizer, "chatml", "react").encode(row)
    runs: dict[float, str] = {}
    for token, weight in zip(encoded.input_ids, encoded.loss_weights, strict=True):
        runs[weight] = runs.get(weight, "") + tokenizer.decode([token])
    assert runs[3.0].split() == ["Action:", "get", "Action", "Input:", "{}"]
    assert runs[2.0] == "Observation:"
    assert runs[1.0].split() == ["Thought:", "look", "18", "Final", "Answer:", "warm<|im_end|>"]


def test_an_empty_thought_is_not_trained_on(tokenizer: Any) -> None:
    row = Row((Message("user", "Hello"), Message("assistant", "Hi")))
    with_rule, without = (encoder(tokenizer, "qwen3", words).encode(row) for words in ("ignore_empty_think", "default"))
    assert with_rule.input_ids == without.input_ids
    labels = [[label for label in one.labels if label >= 0] for one in (with_rule, without)]
    assert [tokenizer.decode(kept) for kept in labels] == ["Hi<|im_end|>", "<think>\n\n</think>\n\nHi<|im_end|>"]


def test_all_trains_on_every_token(tokenizer: Any) -> None:
    encoded = encoder(tokenizer, "chatml", "all").encode(Row((Message("user", "Hello"), Message("assistant", "Hi"))))
    assert encoded.labels == encoded.input_ids
