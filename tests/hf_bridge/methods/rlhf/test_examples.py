"""What reaches a model: the tokens, answers and labels of our own templates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hf_bridge.data.row import Message, Row
from hf_bridge.methods.config import LengthConfig
from hf_bridge.methods.rlhf.examples import end_tokens, judged, last_answer, pairs, prompt_ids
from hf_bridge.methods.rlhf.methods import METHODS
from hf_bridge.templates.encoding import encoder
from hf_bridge.templates.truncation import Fitting
from swift_mega.base.errors import UserError
from tests.hf_bridge.methods.rlhf.conftest import Made
from tests.hf_bridge.methods.rlhf.conftest import pairs as rows_of_pairs
from tests.support import tiny_chat

FITTING = 1000


@pytest.fixture(scope="module")
def words() -> Any:
    return tiny_chat.tokenizer()


def seen(made: Made) -> list[list[int]]:
    """The texts that the model is given for a batch, without padding."""
    found: list[list[int]] = []

    def keep(_: Any, unnamed: Any, given: dict[str, Any]) -> None:
        texts = unnamed[0] if unnamed else given["input_ids"]
        for ids, mask in zip(texts, given["attention_mask"], strict=True):
            found.append(ids[mask.bool()].tolist())

    base = made.setup.model.get_base_model().model
    hook = base.register_forward_pre_hook(keep, with_kwargs=True)
    made.loss()
    hook.remove()
    return found


@pytest.mark.parametrize("method", ["dpo", "cpo", "orpo", "rm"])
def test_pairs_reach_the_model_as_the_encoder_has_them(make: Callable[..., Made], method: str) -> None:
    made = make(method)
    encoded = [made.setup.encoder.encode_pair(row) for row in made.rows]
    wanted = [pair.chosen.input_ids for pair in encoded] + [pair.rejected.input_ids for pair in encoded]
    texts = seen(made)
    assert texts[: len(wanted)] == wanted
    assert len(texts) == len(wanted) * (2 if method == "dpo" else 1)  # once more for the reference
    pairs_kept = [(pair.chosen.labels, pair.rejected.labels) for pair in encoded]
    for example, labels in zip(made.examples, pairs_kept, strict=True):
        for tokens, own in zip((example.chosen, example.rejected), labels, strict=True):
            assert np.where(tokens.mask, tokens.input_ids, -100).tolist() == own


def test_tools_answers_are_not_of_the_answer(words: Any) -> None:
    turns = (
        Message("user", "Hello"),
        Message("assistant", "Action"),
        Message("tool", "sunny"),
        Message("assistant", "ok"),
    )
    example = pairs(encoder(words, "chatml"), Row(turns, rejected=(Message("assistant", "No"),)), Fitting(FITTING))[0]
    chosen = example.chosen
    assert words.decode(chosen.input_ids[chosen.mask]) == "Action<|im_end|>ok<|im_end|>"
    assert words.decode(chosen.input_ids[: chosen.prompt]).endswith("<|im_start|>assistant\n")
    assert "sunny" in words.decode(chosen.input_ids[: chosen.prompt])


def test_only_the_last_answer_is_judged(words: Any) -> None:
    turns = (
        *(Message("user", "Hello"), Message("assistant", "One")),
        *(Message("user", "more"), Message("assistant", "Two")),
    )
    encode = encoder(words, "chatml")
    encoded = last_answer(encode, Row(turns))
    assert words.decode([label for label in encoded.labels if label >= 0]) == "Two<|im_end|>"
    (example,) = judged(encode, Row(turns, label=False), Fitting(FITTING))
    assert not example.label and example.text.input_ids.tolist() == encoded.input_ids
    both = judged(encode, Row(turns, rejected=(Message("assistant", "Bad"),)), Fitting(FITTING))
    assert [part.label for part in both] == [True, False]


@pytest.mark.parametrize("label", [None, 0.7])
def test_a_label_that_says_nothing_is_a_fault_of_the_row(words: Any, label: float | None) -> None:
    row = Row((Message("user", "Hello"), Message("assistant", "One")), label=label)
    with pytest.raises(UserError, match="no `label`" if label is None else "its `label` is 0.7"):
        judged(encoder(words, "chatml"), row, Fitting(FITTING))


def test_weights_other_than_0_and_1_are_refused(words: Any) -> None:
    row = Row(
        (Message("user", "Hello"), Message("assistant", "One", loss_scale=3.0)), rejected=(Message("assistant", "Two"),)
    )
    with pytest.raises(UserError, match="weighs 3 in the loss"):
        pairs(encoder(words, "chatml"), row, Fitting(FITTING))


def test_a_question_ends_where_the_answer_begins(words: Any) -> None:
    encode = encoder(words, "chatml")
    asked = (Message("system", "Be fine."), Message("user", "Hello"))
    wanted = "<|im_start|>system\nBe fine.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert words.decode(prompt_ids(encode, Row(asked))) == wanted
    assert prompt_ids(encode, Row((*asked, Message("assistant", "One")))) == prompt_ids(encode, Row(asked))
    former = (Message("user", "Hi"), Message("assistant", "there"), *asked[1:])
    assert words.decode(prompt_ids(encode, Row(former))).endswith(
        "there<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(UserError, match="no question"):
        prompt_ids(encode, Row((Message("assistant", "One"),)))


def test_an_answer_ends_with_the_templates_token_and_the_tokenizers(words: Any) -> None:
    ends = words.convert_ids_to_tokens(end_tokens(encoder(words, "chatml"), words))
    assert set(ends) == {"<|im_end|>", "</s>"}


def test_long_rows_are_counted(make_setup: Callable[..., Any]) -> None:
    from hf_bridge.data.rows import Rows

    setup = make_setup("dpo")
    rows = Rows.all_of(rows_of_pairs())
    longest = [max(pair.chosen.tokens, pair.rejected.tokens) for pair in METHODS["dpo"].dataset(setup, rows)]
    limit = sorted(longest)[2] - 1
    setup.config.length = LengthConfig(max_length=limit, long_rows="drop")
    assert dict(METHODS["dpo"].dataset(setup, rows).counts.fitting) == {"fits": 2, "dropped": 2}
    setup.config.length = LengthConfig(max_length=limit, long_rows="truncate")
    cut = METHODS["dpo"].dataset(setup, rows)
    assert max(max(pair.chosen.tokens, pair.rejected.tokens) for pair in cut) == limit
    lengths = [len(prompt.input_ids) for prompt in METHODS["grpo"].dataset(setup, rows)]
    setup.config.length = LengthConfig(max_length=min(lengths), long_rows="drop")
    assert dict(METHODS["grpo"].dataset(setup, rows).counts.fitting) == {"fits": 1, "dropped": 3}


def test_padding_is_behind_texts_and_before_questions() -> None:
    from hf_bridge.methods.rlhf.collate import left_padded, padded
    from hf_bridge.methods.rlhf.examples import Tokens

    texts = [Tokens(np.arange(n, dtype=np.int32).tobytes(), bytes([0] * (n - 1) + [1])) for n in (2, 4)]
    made = padded(texts, 9)
    assert made.input_ids.tolist() == [[0, 1, 9, 9], [0, 1, 2, 3]]
    assert made.labels.tolist() == [[-100, 1, -100, -100], [-100, -100, -100, 3]]
    assert made.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    ids, mask = left_padded([[1], [2, 3]], 9)
    assert ids.tolist() == [[9, 1], [2, 3]] and mask.tolist() == [[0, 1], [1, 1]]
    assert ids.dtype == torch.int64
