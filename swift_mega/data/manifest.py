"""`PREFIX.json` beside `.bin/.idx`: what was built from what, and whether a model may read it.

Megatron's files say neither which tokenizer wrote them nor where the end-of-document token is; a
wrong tokenizer trains without an error and learns noise. The manifest closes that gap.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from swift_mega.base.errors import UserError
from swift_mega.base.reading import read_errors_are_the_users
from swift_mega.data.indexed import Index, read_index
from swift_mega.data.tokenizer import TokenizerInfo


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file that was read."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything known about a pair of `.bin/.idx` files."""

    format: str = "swift-mega data 1"
    tokenizer: TokenizerInfo
    options: dict[str, Any]
    """Everything else that decides the bytes: text key, EOD, special tokens …"""
    sources: list[Source]
    documents: int
    tokens: int
    dtype: str
    largest_token: int
    empty_documents: int
    """Rows whose text gave no token; they are not among `documents`."""
    bad_rows: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""

    def recipe(self) -> tuple[Any, ...]:
        """What the bytes follow from; two builds with equal recipes write equal files."""
        contents = [(source.bytes, source.sha256) for source in self.sources]
        return self.tokenizer.definition, self.tokenizer.digest, self.options, contents


def fingerprint(prefix: str) -> str:
    """What tells the data at `prefix` from other data that is put in its place.

    By the manifest, which knows what the tokens were made of; without one by the lengths of the documents.
    """
    manifest = read_manifest(prefix)
    if manifest is not None:
        return hashlib.sha256(msgspec.json.encode(manifest.recipe(), order="deterministic")).hexdigest()
    index = read_index(prefix)
    return hashlib.sha256(index.dtype.str.encode() + index.lengths.tobytes()).hexdigest()


def manifest_path(prefix: str | Path) -> Path:
    """The manifest of `prefix`."""
    return Path(f"{prefix}.json")


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Write `PREFIX.json`."""
    manifest_path(prefix).write_text(
        json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_manifest(prefix: str | Path) -> Manifest | None:
    """The manifest of `prefix`; None for files that another tool built.

    Raises:
        UserError: the file is there but damaged.
    """
    path = manifest_path(prefix)
    if not path.is_file():
        return None
    with read_errors_are_the_users(path):
        content = path.read_bytes()
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not a manifest of `swift-mega data build`: {error}.",
            "Build the data again, with `--overwrite`.",
        ) from None


def check(prefix: str, vocab_size: int | None, tokenizer: TokenizerInfo | None = None) -> tuple[Index, Manifest | None]:
    """The index and manifest of `prefix`, if a model with this vocabulary and tokenizer may read it.

    Args:
        prefix: path without `.bin`.
        vocab_size: rows of the model's embedding that stand for tokens (padding left out); None: not known yet.
        tokenizer: of the model; None leaves the tokenizers uncompared.

    Raises:
        UserError: missing, truncated or empty files, another tokenizer, a token beyond the vocabulary.
    """
    index, manifest = read_index(prefix), read_manifest(prefix)
    if index.tokens == 0:
        raise UserError(
            f"{prefix} is empty: {index.documents} documents, 0 tokens.",
            "Leave it out of the list of data, or build it again from texts that are not empty.",
        )
    if manifest is None:
        return index, None
    if (manifest.documents, manifest.tokens) != (index.documents, index.tokens):
        raise UserError(
            f"{manifest_path(prefix)} speaks of {manifest.documents} documents and {manifest.tokens} tokens, "
            f"the .idx beside it of {index.documents} and {index.tokens}.",
            "The files come from different builds: run `swift-mega data build --overwrite`.",
        )
    if tokenizer is not None and manifest.tokenizer.digest != tokenizer.digest:
        theirs = manifest.tokenizer
        raise UserError(
            f"{prefix} was built with the tokenizer {theirs.name} ({theirs.vocab_size} ids, {theirs.digest[:12]}), "
            f"the model uses {tokenizer.name} ({tokenizer.vocab_size} ids, {tokenizer.digest[:12]}).",
            f"Build it again with `--tokenizer {tokenizer.name}`, or give the run its tokenizer (`--model.tokenizer`).",
        )
    if vocab_size is not None and manifest.largest_token >= vocab_size:
        raise token_out_of_range(prefix, manifest.largest_token, vocab_size)
    return index, manifest


def token_out_of_range(where: str, token: int, vocab_size: int) -> UserError:
    """The error for a token that the embedding has no row for."""
    return UserError(
        f"{where} holds token {token}, the model's vocabulary ends at {vocab_size - 1}.",
        "Use data built with the model's own tokenizer.",
    )
