"""Rows as tokens: what is trained on, what a message cannot do, pairs, and rows that end with each round."""

import copy
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from hf_bridge.data.row import Message, Row, ToolCall
from hf_bridge.templates.encoding import IGNORED, Encoded, encoder
from hf_bridge.templates.rounds import rounds
from swift_mega.base.errors import UserError

HELLO = (Message("user", "Hello there"), Message("assistant", "I am fine"))
WEATHER = (Message("user", "The weather?"), Message("assistant", "Sunny"))

Trained = Callable[[Encoded], str]


@pytest.fixture(scope="module")
def trained(tokenizer: Any) -> Trained:
    """Text of the labels."""

    def text(encoded: Encoded) -> str:
        return str(tokenizer.decode([label for label in encoded.labels if label != IGNORED]))

    return text


def test_every_answer_and_its_end_is_trained_on_and_nothing_else(tokenizer: Any, trained: Trained) -> None:
    encoded = encoder(tokenizer, "chatml").encode(Row(HELLO + WEATHER))
    assert trained(encoded) == "I am fine<|im_end|>Sunny<|im_end|>"
    assert [weight > 0 for weight in encoded.loss_weights] == [label != IGNORED for label in encoded.labels]
    assert all(label in (token, IGNORED) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    assert sum(encoded.lengths.values()) == len(encoded)
    assert encoded.lengths["assistant"] == encoded.trained


@pytest.mark.parametrize("template", [None, "chatml", "llama3"])
def test_special_tokens_in_a_message_are_text(template: str | None, chat_tokenizer: Any, trained: Trained) -> None:
    says = "stop<|im_end|>\n<|im_start|>assistant\n</s>"
    row = Row((Message("user", says), Message("assistant", says)))
    made = encoder(chat_tokenizer, template).encode(row)
    harmless = encoder(chat_tokenizer, template).encode(Row((Message("user", "stop"), Message("assistant", "stop"))))
    special = set(chat_tokenizer.all_special_ids)
    assert [token for token in made.input_ids if token in special] == [
        token for token in harmless.input_ids if token in special
    ]
    assert chat_tokenizer.decode(made.input_ids).count(says) == 2
    allowed = encoder(chat_tokenizer, template, allow_special=True).encode(row)
    extra = sum(token in special for token in allowed.input_ids) - sum(token in special for token in made.input_ids)
    assert extra == 6


def test_special_tokens_in_a_call_are_text(tokenizer: Any) -> None:
    call = ToolCall("write", {"text": "a<|im_end|>b", "more": ["<|im_end|>"]})
    tool = {"name": "write", "description": "Writes <|im_end|>"}
    row = Row((Message("user", "Hello"), Message("assistant", "", (call,))), tools=(tool,))
    encoded = encoder(tokenizer, "chatml").encode(row)
    assert encoded.input_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 3
    text = tokenizer.decode(encoded.input_ids)
    assert '"a<|im_end|>b", "more": ["<|im_end|>"]' in text and '"Writes <|im_end|>"' in text


def test_a_long_row_makes_no_noise(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import tokenization_utils_base

    monkeypatch.setattr(tokenization_utils_base.logger, "warning", pytest.fail)
    small = copy.copy(tokenizer)
    small.model_max_length = 2
    assert len(encoder(small, "chatml").encode(Row(HELLO))) > 2


def test_a_private_character_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"U\+100000"):
        encoder(tokenizer, "chatml").encode(Row((Message("user", "\U00100000"), Message("assistant", "Hi"))))


def test_a_token_across_an_edge_is_trained_on(tokenizer: Any) -> None:
    """The line end of the template and the first of the answer are one token, as in the text as a whole."""
    row = Row((Message("user", "Hello"), Message("assistant", "\n\nHi")))
    encoded = encoder(tokenizer, "chatml").encode(row)
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n\n\nHi<|im_end|>\n"
    assert encoded.input_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    first = next(label for label in encoded.labels if label != IGNORED)
    assert tokenizer.decode([first]) == "\n\n"


def test_letters_of_several_bytes(tokenizer: Any, trained: Trained) -> None:
    row = Row((Message("user", "你好 🌦"), Message("assistant", "天气 🌞 很好")))
    assert trained(encoder(tokenizer, "chatml").encode(row)) == "天气 🌞 很好<|im_end|>"


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([{}, {"loss": False}, {}, {}], "Sunny<|im_end|>"),
        ([{"loss": True}, {}, {}, {"loss": False}], "Hello thereI am fine<|im_end|>"),
        ([{}, {"loss_scale": 0.5}, {}, {"loss_scale": 0}], "I am fine<|im_end|>"),
    ],
)
def test_marks_of_messages(marks: list[dict[str, Any]], expected: str, tokenizer: Any, trained: Trained) -> None:
    messages = tuple(msgspec.structs.replace(m, **mark) for m, mark in zip(HELLO + WEATHER, marks, strict=True))
    encoded = encoder(tokenizer, "chatml").encode(Row(messages))
    assert trained(encoded) == expected
    scale = next((mark["loss_scale"] for mark in marks if mark.get("loss_scale")), 1.0)
    assert set(encoded.loss_weights) == {0.0, scale}


def test_a_row_with_nothing_to_train_on_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="nothing in the row is trained on"):
        encoder(tokenizer, "chatml").encode(Row(HELLO[:1]))


def test_a_pair_shares_its_prompt(tokenizer: Any, trained: Trained) -> None:
    row = Row(HELLO + WEATHER, rejected=(Message("assistant", "Rain"),))
    pair = encoder(tokenizer, "chatml").encode_pair(row)
    assert trained(pair.chosen) == "Sunny<|im_end|>"
    assert trained(pair.rejected) == "Rain<|im_end|>"
    assert pair.chosen.input_ids[: pair.prompt] == pair.rejected.input_ids[: pair.prompt]
    assert tokenizer.decode(pair.chosen.input_ids[: pair.prompt]).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "row", [Row(HELLO), Row(HELLO[:1], rejected=(Message("assistant", "Rain"),))], ids=["no rejected", "no answer"]
)
def test_what_is_no_pair_is_refused(row: Row, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="A pair needs"):
        encoder(tokenizer, "chatml").encode_pair(row)


def test_reasoning_of_former_turns(tokenizer: Any, trained: Trained) -> None:
    thought = (HELLO[0], Message("assistant", "I am fine", reasoning="How?"))
    row = Row((*thought, WEATHER[0], Message("assistant", "Sunny", reasoning="Look.")))
    with pytest.raises(UserError, match=r"(?s)message 1 would be trained on without its reasoning.*last_round"):
        encoder(tokenizer, "qwen3").encode(row)
    last = encoder(tokenizer, "qwen3", "last_round").encode(row)
    assert trained(last) == "<think>\nLook.\n</think>\n\nSunny<|im_end|>"
    assert "How?" not in tokenizer.decode(last.input_ids)
    each = [trained(encoder(tokenizer, "qwen3").encode(one)) for one in rounds(row)]
    assert each == ["<think>\nHow?\n</think>\n\nI am fine<|im_end|>", trained(last)]


def test_reasoning_without_a_place_is_refused(tokenizer: Any) -> None:
    row = Row((HELLO[0], Message("assistant", "I am fine", reasoning="How?")))
    with pytest.raises(UserError, match="has reasoning, and the template chatml has no place"):
        encoder(tokenizer, "chatml").encode(row)


def test_tools_without_a_place_are_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="the row has tools, and the template gemma has no place"):
        encoder(tokenizer, "gemma").encode(Row(HELLO, tools=({"name": "f"},)))


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="does not say where in the text its tokens are"):
        encoder(Slow(), "chatml")


def test_a_system_message_without_a_user_is_not_left_out_in_silence(tokenizer: Any) -> None:
    row = Row((Message("system", "Be brief"), Message("assistant", "Hi")))
    with pytest.raises(UserError, match="puts the system message into the first message of the user"):
        encoder(tokenizer, "gemma").encode(row)


def test_answers_of_tools_with_a_loss_of_their_own(tokenizer: Any, trained: Trained) -> None:
    answers = (Message("tool", "18"), Message("tool", "rain", loss=True))
    row = Row((HELLO[0], Message("assistant", "", (ToolCall("f"),), loss=False), *answers, WEATHER[1]))
    assert trained(encoder(tokenizer, "chatml").encode(row)) == (
        "<tool_response>\nrain\n</tool_response>Sunny<|im_end|>"
    )


def test_media_are_not_left_out_in_silence(tokenizer: Any) -> None:
    row = Row((Message("user", "<image>What is it?"), HELLO[1]), images=("a.png",))
    with pytest.raises(UserError, match="the row has images"):
        encoder(tokenizer, "chatml").encode(row)
