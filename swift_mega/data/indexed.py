"""Megatron's `.bin/.idx` format, torch-free: the index read and checked, and the pair written.

Training reads these files with `megatron.core.datasets.indexed_dataset`; `data build` and the checks
made before a run must not pay for importing torch, so the 34-byte header and the three arrays behind
it are spelled out here. A test holds the bytes equal to those of `IndexedDatasetBuilder`.

    .bin   the tokens of all documents, one after the other
    .idx   magic, version, dtype code, number of sequences, number of document boundaries,
           int32 lengths [tokens], int64 pointers [bytes into .bin], int64 document boundaries
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swift_mega.base.errors import UserError
from swift_mega.base.reading import read_errors_are_the_users

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document boundaries
DTYPES: dict[int, type[np.integer[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}


def bin_path(prefix: str | Path) -> Path:
    """The file of tokens of `prefix`."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The file of lengths and positions of `prefix`."""
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type Megatron stores tokens in: two bytes below 65,500 ids, four above."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


@dataclass(frozen=True)
class Index:
    """What an `.idx` file says.

    Attributes:
        dtype: of the tokens in the `.bin` file.
        lengths: tokens per document, int32, mapped from the file.
    """

    prefix: str
    dtype: np.dtype[Any]
    lengths: np.ndarray

    @property
    def documents(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))


def read_index(prefix: str | Path) -> Index:
    """The index of `prefix`, after checking both files against each other.

    Raises:
        UserError: a file is missing, is not in Megatron's format, or is shorter or longer than the index says.
    """
    idx, binary = idx_path(prefix), bin_path(prefix)
    for path in (idx, binary):
        with read_errors_are_the_users(path):
            if not path.is_file():
                raise UserError(
                    f"{path} does not exist.", "Give the path without `.bin`; `swift-mega data build` writes both."
                )
    index = _read_idx(prefix, idx)
    with read_errors_are_the_users(binary), binary.open("rb"):
        pass  # here, and not when training is about to begin
    expected = index.tokens * index.dtype.itemsize
    if binary.stat().st_size != expected:
        raise _truncated(binary, expected, f"{index.tokens} tokens × {index.dtype.itemsize}, as its .idx says")
    return index


def _read_idx(prefix: str | Path, idx: Path) -> Index:
    with read_errors_are_the_users(idx):
        sequences, boundaries, dtype = _read_header(idx)
        expected = HEADER.size + 12 * sequences + 8 * boundaries
        if idx.stat().st_size < expected:
            raise _truncated(idx, expected, f"{sequences} documents × 12 + {boundaries} boundaries × 8 + {HEADER.size}")
        shape = (sequences,)
        lengths = np.memmap(idx, np.int32, "r", HEADER.size, shape) if sequences else np.zeros(0, np.int32)
    return Index(str(prefix), dtype, lengths)


def _read_header(idx: Path) -> tuple[int, int, np.dtype[Any]]:
    with idx.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise _truncated(idx, HEADER.size, "the header alone")
    magic, version, code, sequences, boundaries = HEADER.unpack(head)
    if magic != MAGIC or version != 1 or code not in DTYPES:
        raise UserError(f"{idx} is not a Megatron index of version 1.", "Build it with `swift-mega data build`.")
    return sequences, boundaries, np.dtype(DTYPES[code])


def _truncated(path: Path, expected: int, arithmetic: str) -> UserError:
    got = path.stat().st_size
    return UserError(
        f"{path} has {got} bytes where {expected} are due ({arithmetic}).",
        "It was cut short or belongs to another build: copy it again, or run `swift-mega data build --overwrite`.",
    )


class IndexedWriter:
    """Writes a pair of files, one batch of documents after the other.

    Args:
        binary: where the tokens go; opened and closed by the caller.
        dtype: of the tokens, see `token_dtype`.
    """

    def __init__(self, binary: BinaryIO, dtype: np.dtype[Any]) -> None:
        self.binary = binary
        self.dtype = dtype
        self.lengths: list[np.ndarray] = []

    def add(self, tokens: bytes, lengths: np.ndarray) -> None:
        """Append documents: their tokens already in `dtype`, and the number of tokens of each (int32)."""
        self.binary.write(tokens)
        self.lengths.append(lengths)

    def write_index(self, path: Path) -> None:
        """Write the `.idx` that belongs to everything added."""
        lengths = np.concatenate(self.lengths) if self.lengths else np.zeros(0, np.int32)
        path.write_bytes(b"".join(index_parts(lengths, self.dtype)))


def index_parts(lengths: np.ndarray, dtype: np.dtype[Any]) -> Iterable[bytes]:
    """The `.idx` for documents of these lengths, one sequence per document as `data build` writes them."""
    code = next(code for code, known in DTYPES.items() if known == dtype)
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    yield HEADER.pack(MAGIC, 1, code, len(lengths), len(lengths) + 1)
    yield lengths.astype(np.int32).tobytes()
    yield (ends - lengths.astype(np.int64) * dtype.itemsize).tobytes()
    yield np.arange(len(lengths) + 1, dtype=np.int64).tobytes()
