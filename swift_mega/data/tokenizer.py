"""Any Hugging Face tokenizer, and the little about it that data and model must agree on.

Loading goes through `transformers`, which alone knows what a tokenizer's files mean together; the
import (seconds, and torch with it) is paid where a tokenizer is loaded, not where this file is imported.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swift_mega.base.errors import UserError, nearest
from swift_mega.base.hub import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


UNLOADABLE = (OSError, ValueError, KeyError, TypeError)
"""What `transformers` raises of files that are not there or not what it expects; `tokenizers` raises a bare Exception,
of those that a newer one has written, for example."""


@dataclass(frozen=True, kw_only=True)
class TokenizerInfo:
    """What a data set and a model must agree on.

    Attributes:
        name: folder or id, for messages.
        digest: SHA-256 of the table id → token. Two tokenizers with equal tables read the same `.bin`,
            however their files are formatted.
        definition: SHA-256 of everything the tokenizer does with a text; decides whether a build can be reused.
        vocab_size: one more than the largest id.
        eod: id of the end-of-document token: the tokenizer's end of sequence; None if it names none.
    """

    name: str
    digest: str
    definition: str
    vocab_size: int
    eod: int | None

    @classmethod
    def of(cls, name: str | Path, *, trust_remote_code: bool = False) -> "TokenizerInfo":
        """The facts about the tokenizer in a folder or on a hub.

        Raises:
            UserError: no tokenizer there.
        """
        return describe(load_tokenizer(str(name), trust_remote_code=trust_remote_code), str(name))


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder, or of a model on a hub.

    Raises:
        UserError: there is none, its files are damaged, or it needs code of its own and that was not allowed.
    """
    from transformers import AutoTokenizer

    folder = resolve_model(name, weights=False)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        if not isinstance(error, UNLOADABLE) and type(error) is not Exception:
            raise
        if "trust_remote_code" in str(error):
            fix = "Read that code; if you trust it, allow it with `--trust-remote-code`."
            raise UserError(f"the tokenizer {name} brings its own Python code.", fix) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"no tokenizer could be loaded from {folder}: {reason}", "Give a folder with tokenizer.json."
        ) from None


def describe(tokenizer: "PreTrainedTokenizerBase", name: str) -> TokenizerInfo:
    """The facts about a loaded tokenizer."""
    vocabulary = tokenizer.get_vocab()
    table = json.dumps(sorted((number, token) for token, number in vocabulary.items()))
    return TokenizerInfo(
        name=name,
        digest=hashlib.sha256(table.encode()).hexdigest(),
        definition=hashlib.sha256(_definition(tokenizer, table).encode()).hexdigest(),
        vocab_size=max(len(tokenizer), max(vocabulary.values(), default=-1) + 1),
        eod=tokenizer.eos_token_id,
    )


def _definition(tokenizer: "PreTrainedTokenizerBase", table: str) -> str:
    """All that decides the ids of a text; a tokenizer written in Python is known by its class and settings."""
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.to_str()  # type: ignore[no-any-return]
    settings = {key: str(value) for key, value in sorted(tokenizer.init_kwargs.items()) if "path" not in key}
    return f"{type(tokenizer).__qualname__} {settings} {table}"


def token_id(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    """The id of a token given as text.

    Raises:
        UserError: the vocabulary does not hold it.
    """
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        specials = [special for special in tokenizer.all_special_tokens if isinstance(special, str)]
        raise UserError(f"the tokenizer has no token `{token}`.", nearest(token, specials))
    return int(vocabulary[token])


def wrapping(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The ids a tokenizer puts before and after every text (BOS, EOS …), by trying it on one.

    Raises:
        UserError: it does something else to a text than putting ids around it.
    """
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise UserError("the tokenizer changes a text when it adds special tokens.", "Add none: `--no-special-tokens`.")
