"""What model and tokenizer must agree on: ids that the model has, and one to pad with."""

from pathlib import Path
from typing import Any

from swift_mega.base.console import say
from swift_mega.base.errors import UserError

PADDING = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|PAD_TOKEN|>", "<|endoftext|>", "<unk>")
"""Tokens that models were not trained to say, in the order of preference."""


def check_vocabulary(tokenizer: Any, config: Any, folder: Path) -> None:
    """Every id of the tokenizer has a row in the model's embedding.

    Raises:
        UserError: the vocabulary of the model is smaller.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"the tokenizer in {folder} has ids up to {largest} (`{token}`), and the model only {rows} (vocab_size).",
            "Take the tokenizer from the model's own repository.",
        )


def set_padding(tokenizer: Any, model: Any) -> None:
    """Give the tokenizer a token to pad with where it has none, and tell the model.

    The end of the text is the last choice: a head that looks for the last token before the padding would miss it.
    """
    if tokenizer.pad_token_id is None:
        known = tokenizer.get_vocab()
        free = (word for word in PADDING if word in known and word != tokenizer.eos_token)
        tokenizer.pad_token = next(free, tokenizer.eos_token)
        if tokenizer.pad_token is None:
            raise UserError(
                "the tokenizer has no token to pad with, nor one for the end of a text.",
                "Set `pad_token` in its tokenizer_config.json.",
            )
        say(f"The tokenizer has no token to pad with: `{tokenizer.pad_token}` is taken.")
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
