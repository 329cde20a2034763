"""The tokenizer of a GGUF file in Hugging Face's format; it is transformers that knows how to build it."""

from pathlib import Path

from converters.stores.gguf_file import GgufFile
from swift_mega.base.console import say
from swift_mega.base.writing import write_errors_are_the_users

SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
"""The file's name of a token's id → transformers' name of the token."""
CANNOT = (ImportError, AttributeError, KeyError, NotImplementedError, ValueError)
"""What transformers raises where a file has a tokenizer of another kind than it expects, or lacks a field."""


def save_tokenizer(path: Path, folder: Path) -> None:
    """Write the files of the tokenizer into `folder`; where transformers cannot build it, say so."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except CANNOT as error:
        say(f"  without a tokenizer: transformers cannot build that of {path} ({error}); copy one into {folder}")
        return
    fields = GgufFile(path).fields
    tokens = fields["tokenizer.ggml.tokens"]
    for theirs, ours in SPECIAL.items():
        # transformers 5.17 gives Llama's the first of these as the second.
        if (number := fields.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            setattr(tokenizer, ours, tokens[number])
    with write_errors_are_the_users(folder):
        tokenizer.save_pretrained(folder)
