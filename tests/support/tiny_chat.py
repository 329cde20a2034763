"""A tiny chat model: a tokenizer that knows the special tokens of every declared template, and a llama that has it."""

import re
from pathlib import Path
from typing import Any

TEXT = "Hello there, how are you? I am fine, thank you! The weather in Paris is sunny. Action: get_weather\n\n\n {} "
OTHERS = "[gMASK] <sop> <|end_of_text|> <|endoftext|> <|user|> <|observation|> <|tool_call|> <｜User｜> <｜Assistant｜>"


def special_tokens() -> list[str]:
    """Of all declared templates."""
    from hf_bridge.templates.registry import TEMPLATES

    parts = [part for found in TEMPLATES.values() for part in vars(found).values() if isinstance(part, str)]
    words = {word for found in TEMPLATES.values() for word in found.stop if "{" not in word}
    return sorted({*re.findall(r"<\|[^|<>]+\|>", "".join(parts)), *words, *OTHERS.split()})


def tokenizer() -> Any:
    """Byte-level BPE of about 450 tokens, with merges across blanks and line ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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


def save(folder: Path, model_type: str = "llama", **changes: Any) -> Path:
    """A random model of 4 layers and 4 heads with that tokenizer, as transformers saves it."""
    import torch
    import transformers

    from tests.support.tiny import COMMON

    words = tokenizer()
    words.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {**COMMON, "vocab_size": len(words), "max_position_embeddings": 1024, **changes}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
