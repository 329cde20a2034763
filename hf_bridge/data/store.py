"""Rows on disk, read once and looked up by number: a cache whose name is the checksum of what it was made of.

    CACHE/KEY/rows.bin      rows as MessagePack, each with its place (`file:line`), one behind the other
    CACHE/KEY/ends.npy      where each ends (int64)
    CACHE/KEY/media.json    images, videos and audios that were looked for, and whether they were there
    CACHE/KEY/report.json   what was left out, and why; written last: with it a folder is complete
    CACHE/checksums/…       of files, so that one that has not changed is not read again to learn that

A key is made of the bytes of the source, the places of its files (the report names them), the options and the code
that reads; change one of them and it is another key. A medium that has come or gone has all read again. Processes that
start at the same time wait for the first.
Torch-free.
"""

import functools
import hashlib
import json
import math
import mmap
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, overload

import msgspec
import numpy as np

from hf_bridge.data import formats, media, messages, reading, recognise, row, self_cognition
from hf_bridge.data.reading import read_piece, read_piece_here, start_worker
from hf_bridge.data.recognise import Recognition
from hf_bridge.data.report import Report
from hf_bridge.data.row import Row
from swift_mega.base import pool, readers
from swift_mega.base.console import progress
from swift_mega.base.lock import alone_in
from swift_mega.base.readers import CHUNK_BYTES, Corpus
from swift_mega.base.writing import unfinished_folder, write_errors_are_the_users

CODE: tuple[ModuleType, ...] = (readers, formats, media, messages, reading, recognise, row, self_cognition)
"""What decides which rows come out of which bytes."""

OPTION = "--cache-dir"
SETTLED_S = 2.0
"""A file that was written to a moment ago can be written to again without a later time of change."""


def default_cache() -> Path:
    """Beside the caches of the user's other programs."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "swift-mega" / "rows"


class Store(Sequence[Row]):
    """The rows of one source. Memory is the system's page cache; another process opens it again by its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = Report.from_dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
        self._ends = np.load(folder / "ends.npy", mmap_mode="r")
        with (folder / "rows.bin").open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            self._bytes: mmap.mmap | bytes = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._decoder = msgspec.msgpack.Decoder(tuple[Row, str])

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder,)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        return self._decoded(number)[0]

    def where(self, number: int) -> str:
        """The place that a row is from, `file:line`."""
        return self._decoded(number)[1]

    def _decoded(self, number: int) -> tuple[Row, str]:
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number %= len(self)
        start = int(self._ends[number - 1]) if number else 0
        return self._decoder.decode(memoryview(self._bytes)[start : int(self._ends[number])])


def stored(corpus: Corpus, options: Recognition, cache: Path, workers: int | None = None) -> Store:
    """The rows of `corpus`, from the cache or read into it.

    Args:
        workers: processes that read; None: one per core, where there is enough to do.

    Raises:
        UserError: a source that cannot be read, a disk that is full.
    """
    with write_errors_are_the_users(cache, option=f"`{OPTION}`"):
        folder = cache / _key(corpus, options, cache)
        if _is_complete(folder):
            return Store(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder, OPTION, wait_s=math.inf):
            if not _is_complete(folder):
                (folder / "report.json").unlink(missing_ok=True)
                _write(corpus, options, folder, pool.useful_workers(workers, corpus.bytes // CHUNK_BYTES))
    return Store(folder)


def _is_complete(folder: Path) -> bool:
    if not (folder / "report.json").is_file():
        return False
    return media.unchanged(json.loads((folder / "media.json").read_text(encoding="utf-8")))


def _write(corpus: Corpus, options: Recognition, folder: Path, workers: int) -> None:
    """Under a name of its own first: whoever finds a file finds all of it."""
    with unfinished_folder(folder, "rows") as new:
        report, lengths, seen = Report(), list[np.ndarray](), media.Seen()
        with (
            (new / "rows.bin").open("wb") as file,
            progress(corpus.bytes, "reading rows", "B", unit_scale=True) as bar,
        ):
            for piece in _pieces(corpus, options, workers):
                file.write(piece.rows)
                lengths.append(piece.lengths)
                report.add(piece.report)
                seen.update(piece.seen)
                bar.update(piece.size)
        np.save(new / "ends.npy", np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths])))
        (new / "media.json").write_text(json.dumps(seen), encoding="utf-8")
        (new / "report.json").write_text(json.dumps(report.to_dict(), ensure_ascii=False, indent=1), encoding="utf-8")
        for name in ("rows.bin", "ends.npy", "media.json", "report.json"):
            os.replace(new / name, folder / name)


def _pieces(corpus: Corpus, options: Recognition, workers: int) -> Iterator[reading.Piece]:
    if workers == 1:
        yield from (read_piece(chunk, options) for chunk in corpus.chunks())
        return
    with pool.in_order(read_piece_here, workers, start_worker, (options,)) as read:
        yield from read(corpus.chunks())


def _key(corpus: Corpus, options: Recognition, cache: Path) -> str:
    sums = [(source.name, [_checksum(path, cache) for path in source.files]) for source in corpus.sources]
    recipe = msgspec.json.encode([_code_version(), options, sums, corpus.txt_documents], order="deterministic")
    return hashlib.sha256(recipe).hexdigest()[:32]


@functools.cache
def _code_version() -> str:
    digest = hashlib.sha256()
    for module in CODE:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def _checksum(path: Path, cache: Path) -> str:
    """SHA-256 of a file, remembered as long as its size, its times and its place on the disk stay the same."""
    seen = path.stat()
    state = [str(path.resolve()), seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    memo = cache / "checksums" / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    if memo.is_file():
        return memo.read_text(encoding="utf-8")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(seen.st_mtime, seen.st_ctime) > SETTLED_S:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False) as new:
            new.write(found)
        os.replace(new.name, memo)
    return found
