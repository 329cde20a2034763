"""One tiny tokenizer that knows the special tokens of every declared template."""

import copy
import re
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_bridge.templates.registry import TEMPLATES

TEXT = "Hello there, how are you? I am fine, thank you! The weather in Paris is sunny. Action: get_weather\n\n\n {} "
OTHERS = "[gMASK] <sop> <|end_of_text|> <|endoftext|> <|user|> <|observation|> <|tool_call|> <｜User｜> <｜Assistant｜>"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def special_tokens() -> list[str]:
    parts = [part for found in TEMPLATES.values() for part in vars(found).values() if isinstance(part, str)]
    words = {word for found in TEMPLATES.values() for word in found.stop if "{" not in word}
    return sorted({*re.findall(r"<\|[^|<>]+\|>", "".join(parts)), *words, *OTHERS.split()})


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Byte-level BPE of about 450 tokens, with merges across blanks and line ends."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([TEXT] * 3, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", extra_special_tokens=special_tokens()
    )
    made.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    return made


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer: Any) -> Any:
    """The same with ChatML for a chat template."""
    made = copy.copy(tokenizer)
    made.chat_template = CHATML
    return made
