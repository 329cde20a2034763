"""What people look at before they train."""

from typing import Any

from hf_bridge.data.row import Message, Row
from hf_bridge.templates.encoding import encoder
from hf_bridge.templates.show import shown

ROW = Row((Message("user", "Hello there"), Message("assistant", "Thought: no\nAction: get")))


def test_without_a_terminal_weights_stand_in_the_text(tokenizer: Any) -> None:
    encoded = encoder(tokenizer, "chatml", "react").encode(ROW)
    *text, summary = shown(encoded, tokenizer, colours=False).split("\n\n")
    assert "\n\n".join(text) == (
        "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n⟦1│Thought: no\n⟧⟦3│Action: get⟧⟦1│<|im_end|>⟧"
    )
    assert summary.startswith(f"{len(encoded):,} tokens (template ")
    assert summary.endswith(f"{encoded.trained} of them trained on, with weight 1, 3")


def test_colours_hide_nothing(tokenizer: Any) -> None:
    encoded = encoder(tokenizer, "chatml").encode(ROW)
    text = shown(encoded, tokenizer, colours=True)
    assert "\x1b[2m<|im_start|>user" in text
    assert "\x1b[36mThought: no\nAction: get<|im_end|>\x1b[0m" in text
