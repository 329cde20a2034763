"""One tiny tokenizer that knows the special tokens of every declared template."""

import copy
from typing import Any

import pytest

from tests.support import tiny_chat

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_chat.tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer: Any) -> Any:
    """The same with ChatML for a chat template."""
    made = copy.copy(tokenizer)
    made.chat_template = CHATML
    return made
