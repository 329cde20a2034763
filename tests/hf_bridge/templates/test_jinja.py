"""The model's own chat template: what is trained on is what it marks, or what stands behind each prompt."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from hf_bridge.data.row import Message, Row, ToolCall
from hf_bridge.templates.encoding import IGNORED, Encoder, encoder
from hf_bridge.templates.rounds import rounds
from swift_mega.base.errors import UserError
from tests.hf_bridge.templates.conftest import CHATML

MESSAGES = (
    Message("system", "Be brief"),
    Message("user", "Hello there"),
    Message("assistant", "I am fine"),
    Message("user", "The weather?"),
    Message("assistant", "Sunny"),
)

MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

THINKS_LAST = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: reasoning of former turns is gone."""

ASKS_TO_THINK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")

ENDS_TEXT = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
"""As Phi-3's: one more token where the conversation ends."""

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    + CHATML.removeprefix("{% for message in messages %}")
)
"""As published: the system message that it puts before others belongs to the first of them."""

NO_END = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"


def own(tokenizer: Any, chat_template: str, loss_scale: str = "default", **options: Any) -> Encoder:
    made = copy.copy(tokenizer)
    made.chat_template = chat_template
    return encoder(made, None, loss_scale, **options)


def trained(encode: Encoder, row: Row) -> str:
    return str(encode.tokens.tokenizer.decode([label for label in encode.encode(row).labels if label != IGNORED]))


def openai(row: Row) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in row.messages]


@pytest.mark.parametrize("template", [CHATML, MARKED, ENDS_TEXT])
def test_ids_are_those_of_apply_chat_template(template: str, tokenizer: Any) -> None:
    encode = own(tokenizer, template)
    expected = encode.tokens.tokenizer.apply_chat_template(openai(Row(MESSAGES)))["input_ids"]
    assert encode.encode(Row(MESSAGES)).input_ids == expected


def test_marks_are_those_of_transformers(tokenizer: Any) -> None:
    encode = own(tokenizer, MARKED)
    found = encode.tokens.tokenizer.apply_chat_template(openai(Row(MESSAGES)), return_assistant_tokens_mask=True)
    labels = encode.encode(Row(MESSAGES)).labels
    assert [int(label != IGNORED) for label in labels] == found["assistant_masks"]
    assert sum(found["assistant_masks"])


@pytest.mark.parametrize("template", [CHATML, MARKED, ENDS_TEXT])
@pytest.mark.parametrize(
    ("loss_scale", "expected"),
    [("default", "I am fine<|im_end|>Sunny<|im_end|>"), ("last_round", "Sunny<|im_end|>")],
)
def test_answers_are_found(template: str, loss_scale: str, expected: str, tokenizer: Any) -> None:
    assert trained(own(tokenizer, template, loss_scale), Row(MESSAGES)) == expected


def test_the_declared_template_gives_the_same(tokenizer: Any) -> None:
    assert (
        own(tokenizer, CHATML).encode(Row(MESSAGES)).labels == encoder(tokenizer, "chatml").encode(Row(MESSAGES)).labels
    )


@pytest.mark.parametrize(
    ("template", "declared"), [(SMOLLM2, "smollm2"), (CHATML, "chatml"), (ENDS_TEXT, "chatml"), (MARKED, "chatml")]
)
def test_a_row_that_begins_with_an_answer(template: str, declared: str, tokenizer: Any) -> None:
    for messages in (MESSAGES[2:], MESSAGES[2:3]):
        row = Row(messages)
        text = "".join(f"{message.content}<|im_end|>" for message in messages if message.role == "assistant")
        assert trained(own(tokenizer, template), row) == trained(encoder(tokenizer, declared), row) == text


@pytest.mark.parametrize(
    ("template", "count"),
    [(CHATML.partition("{% if add")[0], 0), (ASKS_TO_THINK, 0), (CHATML.replace("%}<|im_start|>", "%}#"), 2)],
)
def test_an_answer_that_opens_the_row_and_does_not_show_where_it_begins(
    template: str, count: int, tokenizer: Any
) -> None:
    row = Row((Message("assistant", "#assistant\nHello"), *MESSAGES[3:]))
    with pytest.raises(UserError, match=f"the row begins with an answer.* is there {count} times"):
        own(tokenizer, template).encode(row)


def test_all_is_all(tokenizer: Any) -> None:
    encoded = own(tokenizer, CHATML, "all").encode(Row(MESSAGES))
    assert encoded.labels == encoded.input_ids


def test_a_template_that_writes_history_anew_is_refused_by_message(tokenizer: Any) -> None:
    messages = (
        *MESSAGES[:2],
        Message("assistant", "I am fine", reasoning="How?"),
        MESSAGES[3],
        Message("assistant", "Sunny", reasoning="Look."),
    )
    with pytest.raises(UserError, match=r"(?s)leaves out the reasoning of message 2"):
        own(tokenizer, THINKS_LAST).encode(Row(messages))
    with pytest.raises(UserError, match=r"(?s)writes message 2 anew.*<think></think>I.*last round"):
        own(tokenizer, THINKS_LAST).encode(Row(MESSAGES))
    assert trained(own(tokenizer, THINKS_LAST, "last_round"), Row(messages)) == "<think>Look.</think>Sunny<|im_end|>"
    each = [trained(own(tokenizer, THINKS_LAST), row) for row in rounds(Row(messages))]
    assert each == ["<think>How?</think>I am fine<|im_end|>", "<think>Look.</think>Sunny<|im_end|>"]


def test_an_answer_that_does_not_follow_the_prompt_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"what is before message 2 anew, or opens its answer otherwise"):
        own(tokenizer, ASKS_TO_THINK).encode(Row(MESSAGES))


def test_an_answer_without_an_end_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="ends it with no special token"):
        own(tokenizer, NO_END).encode(Row(MESSAGES))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Row(MESSAGES, tools=({"name": "get_weather"},)), "the tool `get_weather`"),
        (Row((MESSAGES[1], Message("assistant", "", (ToolCall("look"),)))), "the call of `look` in message 1"),
        (Row((MESSAGES[1], Message("assistant", "Hi", reasoning="Well."))), "the reasoning of message 1"),
    ],
)
def test_what_the_template_would_leave_out_is_refused(row: Row, says: str, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=f"leaves out {says}"):
        own(tokenizer, CHATML).encode(row)


def test_a_row_that_the_template_refuses(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="the chat template refuses the row: no system"):
        own(tokenizer, "{{ raise_exception('no system') }}").encode(Row(MESSAGES))


def test_a_loss_on_a_user_message_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"message 0 \(user\) has a loss"):
        own(tokenizer, CHATML).encode(Row((Message("user", "Hello", loss=True), MESSAGES[2])))


def test_arguments_reach_the_template(tokenizer: Any) -> None:
    template = "{% if not loud %}{{ raise_exception('quiet') }}{% endif %}" + CHATML
    assert own(tokenizer, template, template_arguments={"loud": True}).encode(Row(MESSAGES))


def test_no_chat_template(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        encoder(tokenizer)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "gemma3", "qwen3_instruct_2507"])
def test_templates_as_published(name: str, tokenizer: Any) -> None:
    """The alignment of the published one agrees with the marks that TRL has put into it, blanks at the end apart."""
    home = Path(str(importlib.util.find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]
    row = Row(MESSAGES[1:])
    texts = [trained(own(tokenizer, (home / f"{file}.jinja").read_text()), row) for file in (name, f"{name}_training")]
    assert "".join(texts[0].split()) == "".join(texts[1].split())


@pytest.mark.slow
def test_a_real_tokenizer(smollm2: Path) -> None:
    """SmolLM2's own chat template: by alignment, by its declared template, and by transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rows = [Row(MESSAGES), Row(MESSAGES[1:]), Row((MESSAGES[1], Message("assistant", "  Fine \n\n🌞 <|im_end|>\n")))]
    rows.append(Row(MESSAGES[2:]))
    for row in rows:
        one, other = encoder(tokenizer).encode(row), encoder(tokenizer, "smollm2").encode(row)
        assert one.input_ids == other.input_ids and one.labels == other.labels
    for row in rows[:2]:
        assert encoder(tokenizer).encode(row).input_ids == tokenizer.apply_chat_template(openai(row))["input_ids"]
    assert rows[2].messages[1].content in tokenizer.decode(encoder(tokenizer).encode(rows[2]).input_ids)
