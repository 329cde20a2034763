"""Texts to token ids, a batch at a time: the part of `data build` that runs in every worker.

Torch-free, and without `transformers` unless the tokenizer is one written in Python: a fast tokenizer
travels to the workers as the JSON that defines it.

Three engines give the same ids: `tokenizers` (Hugging Face's Rust library), `gigatoken` (optional,
several times as fast for byte-level BPE; young, so its ids are compared before and during the build)
and `python` (tokenizers without a Rust form).
"""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import numpy as np

from swift_mega.base.errors import UserError
from swift_mega.base.readers import BadRow, Chunk, texts
from swift_mega.data.manifest import token_out_of_range

AUDITED_CHARACTERS = 1 << 16
"""Longest document that an audit encodes a second time: a longer one would cost more than it tells."""


class Engine(Protocol):
    """Token ids of texts, without special tokens around them."""

    def encode(self, batch: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts in one row (an integer type), and the number of ids of each (int64)."""


class Tokenizers:
    """Hugging Face's `tokenizers`."""

    def __init__(self, definition: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(definition)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, batch: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = self.tokenizer.encode_batch_fast(list(batch), add_special_tokens=False)
        return _joined([encoding.ids for encoding in encodings])


class Gigatoken:
    """The package `gigatoken`, on the calling thread."""

    def __init__(self, definition: str) -> None:
        import gigatoken

        self.tokenizer = gigatoken.Tokenizer.from_json(definition)

    def encode(self, batch: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        layout = self.tokenizer.encode_batch(list(batch), parallel=False).layout
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)


class Python:
    """A tokenizer of `transformers` that has no Rust form, one text at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, batch: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _joined([self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in batch])


def _joined(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum())), lengths


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How texts become documents; sent to every worker.

    Attributes:
        engine: `tokenizers`, `gigatoken` or `python`.
        tokenizer: the JSON of a fast tokenizer, or a Python tokenizer itself.
        prefix, suffix: ids around every text; the end-of-document id is the last of `suffix`.
        dtype: of tokens on disk.
    """

    engine: str
    tokenizer: Any
    text_key: str
    prefix: list[int]
    suffix: list[int]
    vocab_size: int
    dtype: str


@dataclass(frozen=True)
class Encoded:
    """A chunk as it goes into the files.

    Attributes:
        tokens: in the dtype of the `.bin` file, all documents in one row.
        lengths: int32, of the documents that have tokens.
        empty: texts that gave no token.
        bad: rows without a text.
        size: bytes of the source that this took.
    """

    tokens: bytes
    lengths: np.ndarray
    largest: int
    empty: int
    bad: list[BadRow] = field(default_factory=list)
    size: int = 0


class Encoder:
    """Turns chunks of rows into tokens."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.engine, self.auditor = engines(encoding)

    def __call__(self, chunk: Chunk) -> Encoded:
        """The documents of `chunk`, in order.

        Raises:
            UserError: an id that the vocabulary or the type on disk does not hold, or engines that disagree.
        """
        rows = list(texts(chunk, self.encoding.text_key))
        batch = [row.text for row in rows if not isinstance(row, BadRow)]
        ids, lengths = self.engine.encode(batch)
        if self.auditor is not None and batch:
            self._audit(chunk, batch, ids, lengths)
        kept = lengths[lengths > 0]
        tokens = wrap(ids, kept, self.encoding.prefix, self.encoding.suffix)
        largest = int(tokens.max(initial=-1))
        if largest >= self.encoding.vocab_size:
            raise token_out_of_range(f"{chunk.source} from row {chunk.first} on", largest, self.encoding.vocab_size)
        around = len(self.encoding.prefix) + len(self.encoding.suffix)
        return Encoded(
            tokens=tokens.astype(self.encoding.dtype).tobytes(),
            lengths=(kept + around).astype(np.int32),
            largest=largest,
            empty=len(lengths) - len(kept),
            bad=[row for row in rows if isinstance(row, BadRow)],
            size=chunk.size,
        )

    def _audit(self, chunk: Chunk, batch: list[str], ids: np.ndarray, lengths: np.ndarray) -> None:
        """Encode one document of the chunk with `tokenizers` as well: about one in a hundred to a thousand."""
        assert self.auditor is not None
        number = chunk.first % len(batch)
        if len(batch[number]) > AUDITED_CHARACTERS:
            return
        start = int(lengths[:number].sum())
        if not np.array_equal(ids[start : start + lengths[number]], self.auditor.encode([batch[number]])[0]):
            raise UserError(
                f"gigatoken and tokenizers give different ids for a document of {chunk.source} near row {chunk.first}.",
                "Build with `--tokenizer-engine tokenizers`, and report the text to gigatoken.",
            )


def engines(encoding: Encoding) -> tuple[Engine, Engine | None]:
    """The engine that does the work, and one to compare a sample with where the first is not the reference."""
    reference = _engine("tokenizers", encoding.tokenizer) if encoding.engine == "gigatoken" else None
    return _engine(encoding.engine, encoding.tokenizer), reference


@functools.lru_cache(maxsize=2)
def _engine(name: str, tokenizer: Any) -> Engine:
    """Made once: a worker that is forked inherits what the check before it has loaded."""
    kinds: dict[str, Callable[[Any], Engine]] = {"tokenizers": Tokenizers, "gigatoken": Gigatoken, "python": Python}
    return kinds[name](tokenizer)


def wrap(ids: np.ndarray, lengths: np.ndarray, prefix: list[int], suffix: list[int]) -> np.ndarray:
    """`ids`, cut into documents of `lengths` (all above 0), with `prefix` before and `suffix` after each; int64."""
    around = len(prefix) + len(suffix)
    wrapped = np.empty(len(ids) + around * len(lengths), np.int64)
    ends = np.cumsum(lengths + around)
    is_text = np.ones(len(wrapped), bool)
    for position, number in enumerate(prefix):
        where = ends - lengths - around + position
        wrapped[where], is_text[where] = number, False
    for position, number in enumerate(reversed(suffix), 1):
        where = ends - position
        wrapped[where], is_text[where] = number, False
    wrapped[is_text] = ids
    return wrapped


_encoder: Encoder | None = None
"""Of a worker process."""


def start_worker(encoding: Encoding) -> None:
    """Make this process ready for `encode_chunk`. The pool is the parallelism, so the Rust library gets one thread."""
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(encoding)


def encode_chunk(chunk: Chunk) -> Encoded:
    """`Encoder.__call__` in a worker process."""
    assert _encoder is not None
    return _encoder(chunk)
