"""Declared templates against what the models' published chat templates made of the same conversations.

`published.json` holds those texts, with `<s>` and `</s>` for the tokenizer's own tokens.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hf_bridge.data.row import Message, Row
from hf_bridge.templates import declared
from hf_bridge.templates.encoding import encoder
from hf_bridge.templates.loss_scale import LossScale
from hf_bridge.templates.registry import TEMPLATES, fitted
from swift_mega.base.errors import UserError

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))

CASES = [(name, number) for name, cases in PUBLISHED.items() for number in range(len(cases))]

NOT_AT_THE_END = {"glm4": "<|user|>", "glm4_5": "<|user|>"}
"""What is trained on behind the last answer, and is the next prompt's to write."""

TWO_ROUNDS = Row(
    messages=(
        Message("user", "Hello there"),
        Message("assistant", "I am fine"),
        Message("user", "The weather?"),
        Message("assistant", "Sunny"),
    )
)


def row_of(case: dict[str, Any]) -> Row:
    return msgspec.convert({"messages": case["messages"], "tools": case["tools"]}, Row)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_text_and_tokens_are_those_of_the_published_template(name: str, number: int, tokenizer: Any) -> None:
    case = PUBLISHED[name][number]
    segments = declared.segments(row_of(case), fitted(name, tokenizer), LossScale())
    expected = case["text"] + NOT_AT_THE_END.get(name, "")
    assert "".join(segment.text for segment in segments) == expected
    encoded = encoder(tokenizer, name).encode(row_of(case))
    assert encoded.input_ids == tokenizer(expected, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_trained_on_with_the_token_that_ends_them(name: str, tokenizer: Any) -> None:
    encoded = encoder(tokenizer, name).encode(TWO_ROUNDS)
    trained = [label for label in encoded.labels if label != -100]
    ends = {tokenizer.eos_token if stop == "{eos}" else stop for stop in TEMPLATES[name].stop}
    ended = [token for token in tokenizer.convert_ids_to_tokens(trained) if token in ends]
    assert len(ended) == 2
    text = tokenizer.decode(trained)
    for end in ends:
        text = text.replace(end, "¦")
    assert [" ".join(part.split()) for part in text.split("¦")] == [
        *([thought("I am fine", name, last=False), thought("Sunny", name, last=True)]),
        "",
    ]


def thought(answer: str, name: str, last: bool) -> str:
    thinking = TEMPLATES[name].thinking
    before = "" if thinking is None else (thinking.empty if last else thinking.past or "")
    head = TEMPLATES[name].answer.partition("{content}")[0]
    return " ".join((before + head + answer).split())


def test_an_unknown_template_is_answered_with_the_nearest(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="did you mean `qwen3`"):
        encoder(tokenizer, "qwen33")


def test_a_template_that_does_not_fit_names_those_that_do() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match=r"(?s)no token `<\|im_end\|>`.*These fit: llama2"):
        encoder(plain, "chatml")


def test_a_system_message_without_a_place_is_refused(tokenizer: Any) -> None:
    from dataclasses import replace

    row = Row((Message("system", "Be brief"), Message("user", "Hello"), Message("assistant", "Hi")))
    template = replace(TEMPLATES["gemma"], system_in_user=None)
    with pytest.raises(UserError, match="no place for a system message"):
        declared.segments(row, template, LossScale())
