"""Rows as examples on disk: encoded once, by all cores, and kept under a name that is the checksum of their making.

    CACHE/encoded/KEY/examples.bin   examples as MessagePack, one behind the other
    CACHE/encoded/KEY/index.npz      of each example: where it ends, how many tokens it has, how many are trained on
    CACHE/encoded/KEY/report.json    what became of the rows, and which could not be encoded; written last

Like `hf_bridge.data.store`, from which the rows come. Torch-free but for the tokenizer that it is given.
"""

import functools
import hashlib
import math
import mmap
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np

import hf_bridge.templates
from hf_bridge.data.row import Row
from hf_bridge.data.rows import Rows
from hf_bridge.data.store import Store, default_cache
from hf_bridge.methods.method import Setup
from hf_bridge.templates.encoding import Encoder
from hf_bridge.templates.truncation import Fitting, Policy
from swift_mega.base import pool
from swift_mega.base.console import counted, progress, say
from swift_mega.base.errors import UserError
from swift_mega.base.lock import alone_in
from swift_mega.base.readers import SHOWN_BAD_ROWS, BadRow, BadRows
from swift_mega.base.writing import unfinished_folder, write_errors_are_the_users
from swift_mega.data.tokenizer import describe

PIECE_ROWS = 256
"""Given to a process at a time: some tenths of a second of work."""


class Example(msgspec.Struct, frozen=True, array_like=True):
    """What is trained on in one go; `make` of `examples` may give a struct of its own in its place.

    Attributes:
        ids: tokens, int32.
        weights: of each token in the loss, float32; 0 where it is not trained on.
        channel: of its row.
    """

    ids: bytes
    weights: bytes
    channel: str | None = None

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.ids) // 4

    @property
    def trained(self) -> int:
        """How many of them are predicted; the first cannot be."""
        return int(np.count_nonzero(np.frombuffer(self.weights, np.float32)[1:]))


Make = Callable[[Encoder, Row, Fitting], Sequence[Any]]
"""What becomes of a row: structs with `tokens` and `trained`. A function of a module, as other processes call it; what
it raises as UserError is a fault of the row."""


@dataclass
class Counts:
    """What became of rows.

    Attributes:
        fitting: examples by what became of them, in the words of `Fitting.counts`.
        long: rows that are too long.
        unlabelled: rows of which all or a part is left out, as nothing in it is trained on.
        bad: rows that could not be encoded.
        channels: examples of each.
    """

    fitting: Counter[str] = field(default_factory=Counter)
    long: BadRows = field(default_factory=BadRows)
    unlabelled: BadRows = field(default_factory=BadRows)
    bad: BadRows = field(default_factory=BadRows)
    channels: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Count in those of another piece."""
        self.fitting += other.fitting
        self.channels += other.channels
        _list(self.long, other.long)
        _list(self.unlabelled, other.unlabelled)
        _list(self.bad, other.bad)


def _list(mine: BadRows, theirs: BadRows) -> None:
    """Count in others. The first are those of a file, not of the order in which rows are drawn."""
    mine.reasons += theirs.reasons
    mine.first = sorted(mine.first + theirs.first, key=_place)[:SHOWN_BAD_ROWS]


def _place(row: BadRow) -> tuple[str, int, str]:
    """Sorts by file, and by line as a number."""
    source, _, line = row.where.rpartition(":")
    return source, len(line), line


class Examples(Sequence[Any]):
    """Examples by number. Memory is the system's page cache.

    Attributes:
        lengths: tokens of each (int64).
        trained: how many of them are trained on (int64).
        counts: what became of the rows.
    """

    def __init__(self, folder: Path, kind: type) -> None:
        self.folder, self.kind = folder, kind
        self.counts = _counts((folder / "report.json").read_bytes())
        with np.load(folder / "index.npz") as index:
            self.ends, self.lengths, self.trained = index["ends"], index["lengths"], index["trained"]
        with (folder / "examples.bin").open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            self._bytes: mmap.mmap | bytes = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kind)

    def __reduce__(self) -> tuple[Any, ...]:
        return Examples, (self.folder, self.kind)

    @property
    def tokens(self) -> int:
        """Of all examples together."""
        return int(self.lengths.sum())

    @functools.cached_property
    def fingerprint(self) -> str:
        """The checksum of all examples."""
        with (self.folder / "examples.bin").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, number: int) -> Any: ...
    @overload
    def __getitem__(self, number: slice) -> list[Any]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"example {number} of {len(self)}")
        number %= len(self)
        start = int(self.ends[number - 1]) if number else 0
        return self._decoder.decode(memoryview(self._bytes)[start : int(self.ends[number])])


def _counts(text: bytes) -> Counts:
    # A Counter is not among the types that msgspec knows.
    return msgspec.json.decode(text, type=Counts, dec_hook=lambda kind, value: kind(value))


def examples(setup: Setup, rows: Rows, make: Make, kind: type = Example) -> Examples:
    """What `make` makes of `rows`, from the cache or into it; what is left out is said, and with `raise` ends it.

    Args:
        kind: struct that `make` gives.

    Raises:
        UserError: rows that cannot be encoded, or none that can.
    """
    config = setup.config
    cache = (Path(config.data.cache_dir).expanduser() if config.data.cache_dir else default_cache()) / "encoded"
    folder = cache / _key(setup, rows, make)
    with write_errors_are_the_users(cache, option="`data.cache_dir`"):
        if not (folder / "report.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with alone_in(folder, "data.cache_dir", wait_s=math.inf):
                if not (folder / "report.json").is_file():
                    _write(setup, rows, make, folder)
    found = Examples(folder, kind)
    _report(found, len(rows), config)
    return found


def _report(found: Examples, rows: int, config: Any) -> None:
    counts = found.counts
    if counts.bad.reasons and config.data.on_bad_row == "skip":
        say(str(counts.bad))
    counts.bad.judge(config.data.on_bad_row)
    if counts.long.reasons:
        report = counts.long.report("long row")
        if config.length.long_rows == "raise":
            raise UserError(report, "Raise `max_length`, or choose `--long-rows truncate`, `drop` or `split`.")
        say(report)
    if counts.unlabelled.reasons:
        parts = counted(counts.fitting["unlabelled"], "example")
        say(f"{parts} left out, with nothing to train on, of {counts.unlabelled.report('row')}")
    if not len(found):
        became = ", ".join(f"{count:,} {what}" for what, count in counts.fitting.items()) or "none can be encoded"
        raise UserError(f"nothing is left to train on of {counted(rows, 'row')}: {became}.", "Look at `long_rows`.")


def _write(setup: Setup, rows: Rows, make: Make, folder: Path) -> None:
    """Under a name of its own first: whoever finds a file finds all of it."""
    counts, index = Counts(), list[np.ndarray]()
    with unfinished_folder(folder, "examples") as new:
        with (new / "examples.bin").open("wb") as file, progress(len(rows), "encoding", "row") as bar:
            for piece in _pieces(setup, rows, make):
                file.write(piece.data)
                counts.add(piece.counts)
                index.append(piece.index)
                bar.update(piece.rows)
        sizes, lengths, trained = np.concatenate([np.zeros((0, 3), np.int64), *index]).T
        np.savez(new / "index.npz", ends=np.cumsum(sizes), lengths=lengths, trained=trained)
        (new / "report.json").write_bytes(msgspec.json.encode(counts))
        for name in ("examples.bin", "index.npz", "report.json"):
            os.replace(new / name, folder / name)


@dataclass(frozen=True)
class _Piece:
    """What becomes of some rows.

    Attributes:
        index: [examples, 3]: the bytes of each, its tokens, and how many of them are trained on (int64).
    """

    data: bytes
    index: np.ndarray
    counts: Counts
    rows: int


@dataclass(frozen=True)
class _Work:
    """What every process has."""

    rows: Rows
    encoder: Encoder
    make: Make
    length: Any

    def piece(self, numbers: range) -> _Piece:
        # With `raise` all of them are looked at before it ends.
        policy: Policy = "drop" if self.length.long_rows == "raise" else self.length.long_rows
        fitting, counts, data = Fitting(self.length.max_length, policy), Counts(), list[bytes]()
        index = []
        for number in numbers:
            for example in self._examples(number, fitting, counts):
                data.append(_encoder.encode(example))
                index.append((len(data[-1]), example.tokens, example.trained))
        counts.fitting = fitting.counts
        return _Piece(b"".join(data), np.array(index, np.int64).reshape(-1, 3), counts, len(numbers))

    def _examples(self, number: int, fitting: Fitting, counts: Counts) -> Sequence[Any]:
        row, before = self.rows[number], fitting.counts.copy()
        try:
            made = self.make(self.encoder, row, fitting)
        except UserError as error:
            self._list(counts.bad, error.what, number)
            return []
        long = bool(set(fitting.counts - before) - {"fits"})
        labelled = [example for example in made if example.trained]
        fitting.counts["unlabelled"] += len(made) - len(labelled)
        if long:
            what = f"more than {fitting.max_length:,} tokens (`long_rows` is `{self.length.long_rows}`)"
            self._list(counts.long, what, number)
        if fitting.counts["unlabelled"] > before["unlabelled"]:
            self._list(counts.unlabelled, _left_out(long, bool(labelled), fitting.max_length), number)
        if row.channel is not None:
            counts.channels[row.channel] += len(labelled)
        return labelled

    def _list(self, rows: BadRows, reason: str, number: int) -> None:
        _list(rows, BadRows(Counter([reason]), [BadRow(reason, self.rows.where(number))]))


def _left_out(long: bool, labelled: bool, max_length: int) -> str:
    """Why something of a row is left out."""
    if not long:
        return "nothing behind its first token is trained on"
    if labelled:
        return f"nothing in some of its parts of {max_length:,} tokens is trained on"
    return f"cut at {max_length:,} tokens, it has no answer left to train on"


def _pieces(setup: Setup, rows: Rows, make: Make) -> Iterator[_Piece]:
    work = _Work(rows, setup.encoder, make, setup.config.length)
    numbers = [range(first, min(first + PIECE_ROWS, len(rows))) for first in range(0, len(rows), PIECE_ROWS)]
    # A template is a function of this process, which only a fork takes along.
    workers = pool.useful_workers(setup.config.data.workers, len(numbers)) if sys.platform == "linux" else 1
    if workers == 1:
        yield from map(work.piece, numbers)
        return
    with pool.in_order(_piece_here, workers, _start_worker, (work,)) as encoded:
        yield from encoded(numbers)


_encoder = msgspec.msgpack.Encoder()
_work: _Work | None = None
"""Of a worker process."""


def _start_worker(work: _Work) -> None:
    global _work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads have not come along, and this process is one of many
    _work = work


def _piece_here(numbers: range) -> _Piece:
    assert _work is not None
    return _work.piece(numbers)


def _key(setup: Setup, rows: Rows, make: Make) -> str:
    """The checksum of all that decides the examples."""
    config, tokenizer = setup.config, setup.tokenizer
    sources = [source.folder.name if isinstance(source, Store) else _digest(source) for source in rows.sources]
    recipe = [
        [_code_version(make.__module__), make.__qualname__, sources, asdict(config.text)],
        [config.length.max_length, config.length.long_rows],
        [describe(tokenizer, "").definition, tokenizer.chat_template, tokenizer.special_tokens_map],
    ]
    digest = hashlib.sha256(msgspec.json.encode(recipe, order="deterministic", enc_hook=str))
    digest.update(rows.source.tobytes() + rows.number.tobytes())
    return digest.hexdigest()[:32]


def _digest(source: Sequence[Row]) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(list(source))).hexdigest()


@functools.cache
def _code_version(module: str) -> str:
    """Of the templates, of this file, and of the method."""
    templates = sorted(Path(hf_bridge.templates.__path__[0]).rglob("*.py"))
    digest = hashlib.sha256()
    for file in (*templates, Path(__file__), Path(str(sys.modules[module].__file__))):
        digest.update(file.read_bytes())
    return digest.hexdigest()
