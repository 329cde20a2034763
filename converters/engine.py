"""Carrying out a plan: byte ranges from file to file, by several threads, so that it can be interrupted.

Moves are carried out in the order in which the source has them on disk, in parts of `PART_BYTES`. When a part is
on the disk, its number is added to a journal beside the files; a conversion that is started again skips the parts
that are there. What is one run of bytes on both sides the kernel copies by itself; the rest passes through memory
a slab at a time. Nothing here knows what a tensor is.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import xxhash

from converters.decoding import Read, box_of, content
from converters.plan import Move, Plan, Target
from converters.space import Box, Stored, span
from converters.stores.files import sync
from converters.tensors import CARRIER, cast
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users

PART_BYTES = 1 << 28
"""Bytes that are copied before the journal is told; as much is copied again after a crash, for each worker."""
KERNEL_COPY_BYTES = 1 << 26
JOURNAL = ".journal"

Report = Callable[[float], object]
"""Is told the number of bytes that have been copied since it was told last."""


class Files:
    """Files of both sides, opened once each."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def reading(self, path: Path) -> int:
        return self._open(path, os.O_RDONLY)

    def writing(self, path: Path) -> int:
        return self._open(path, os.O_RDWR)

    def _open(self, path: Path, flags: int) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, flags)
            return self._descriptors[path]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def reserve(target: Target) -> None:
    """Make the target's files in their full size and write their headers.

    Raises:
        UserError: the disk cannot hold them; said before anything is copied.
    """
    folder = next(iter(target.files)).parent
    with write_errors_are_the_users(folder, sum(target.files.values())), contextlib.closing(Files()) as files:
        for path, size in target.files.items():
            with path.open("wb") as stream:
                if size:
                    os.posix_fallocate(stream.fileno(), 0, size)
        for path, at, content in target.fixed:
            _write(files.writing(path), content, at)


def parts(plan: Plan) -> list[Sequence[Move]]:
    """The moves in portions of about `PART_BYTES`."""
    found: list[Sequence[Move]] = []
    first = filled = 0
    for number, move in enumerate(plan.moves):
        filled += move.nbytes
        if filled >= PART_BYTES:
            found.append(plan.moves[first : number + 1])
            first, filled = number + 1, 0
    if first < len(plan.moves):
        found.append(plan.moves[first:])
    return found


def run(portions: Sequence[Sequence[Move]], mine: Sequence[int], journal: Path, jobs: int, report: Report) -> None:
    """Copy the portions with the numbers `mine`, those left out that a journal beside `journal` has already.

    Raises:
        UserError: a source that ends too early, or a disk that is full.
    """
    done = finished_portions(journal.parent)
    todo = [number for number in mine if number not in done]
    report(sum(move.nbytes for number in mine if number in done for move in portions[number]))
    writing = threading.Lock()
    stop = threading.Event()

    def work(number: int) -> None:
        with contextlib.closing(Files()) as files:
            for move in portions[number]:
                if stop.is_set():
                    return
                copy(move, files, report)
            for path in {move.target for move in portions[number]}:
                os.fdatasync(files.writing(path))
        with writing, journal.open("a", encoding="ascii") as stream:
            stream.write(f"{number}\n")

    with write_errors_are_the_users(journal.parent), ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(work, number) for number in todo]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                future.result()


def journal_of(folder: Path, machine: int) -> Path:
    """Each machine that works on a conversion keeps a journal of its own."""
    return folder / f"{JOURNAL}.{machine}"


def finished_portions(folder: Path) -> set[int]:
    """The numbers of the portions that are on the disk; a last line that was cut off does not count."""
    texts = (journal.read_text(encoding="ascii") for journal in folder.glob(f"{JOURNAL}.[0-9]*"))
    return {int(line) for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")}


def fingerprint(plan: Plan, target: Target) -> str:
    """Changes with any move, with any source file's size or time of change, with what a portion is, and with what is
    written into the target's files before anything is copied."""
    digest = xxhash.xxh3_128(str(PART_BYTES).encode())
    for path in plan.sources:
        status = path.stat()
        digest.update(os.fsencode(path) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    for move in plan.moves:
        digest.update(repr(tuple(move)).encode())
    for path, size in target.files.items():
        digest.update(os.fsencode(path) + f" {size}\n".encode())
    for path, at, fixed in target.fixed:
        digest.update(os.fsencode(path) + f" {at} {len(fixed)}\n".encode())
        digest.update(fixed)
    return str(digest.hexdigest())


def finish(target: Target) -> None:
    """Put everything on the disk, then write the small files that make the target complete, in their order."""
    folder = next(iter(target.files)).parent
    with write_errors_are_the_users(folder):
        for path in target.files:
            sync(path)
        for path, content in target.closing:
            path.write_bytes(content)
            sync(path)
        sync(folder)


def copy(move: Move, files: Files, report: Report) -> None:
    """Carry out one move."""
    target = files.writing(move.target)
    if move.is_run:
        _copy_run(files.reading(move.source), move.begin, target, move.at, move.nbytes, move.source, report)
        return
    box = load(move, files)
    if _run_bytes(move) >= SHORT_BYTES:
        for at, run in _runs(box, move.at, move.target_strides):
            _write(target, run, at)
    else:
        _scatter(box, move, target)
    report(move.nbytes)


SHORT_BYTES = 512
"""Shorter runs, such as every second element, are not written one by one: what lies between is read and rewritten."""


def _run_bytes(move: Move) -> int:
    """Length of what lies without a gap in the target."""
    itemsize = CARRIER[move.target_dtype].itemsize
    return move.shape[-1] * itemsize if move.target_strides[-1] == itemsize else itemsize


def _scatter(box: np.ndarray, move: Move, target: int) -> None:
    extent = span(move.shape, move.target_strides, box.itemsize)
    with _alone(target, move.at, extent):
        buffer = bytearray(extent)
        _read(target, buffer, move.at, move.target)
        np.ndarray(move.shape, box.dtype, buffer, strides=move.target_strides)[...] = box
        _write(target, buffer, move.at)


_scattering = threading.Lock()


@contextlib.contextmanager
def _alone(descriptor: int, begin: int, length: int) -> Iterator[None]:
    """No other thread or machine rewrites these bytes meanwhile, whose neighbours it may be filling."""

    def lock(kind: int) -> None:
        # Of the open file, not of the process: another thread may close the same file.
        what = struct.pack("hhqqi4x", kind, os.SEEK_SET, begin, length, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, what)

    with _scattering:
        lock(fcntl.F_WRLCK)
        try:
            yield
        finally:
            lock(fcntl.F_UNLCK)


def load(move: Move, files: Files) -> np.ndarray:
    """The box of a move in the dtype of its target."""
    carrier = CARRIER[move.source_dtype]
    nbytes = span(move.shape, move.source_strides, carrier.itemsize)
    buffer = content(move.source, move.begin, nbytes, move.encoding, _reader(files))
    box: np.ndarray = np.ndarray(move.shape, carrier, buffer, strides=move.source_strides)
    return np.ascontiguousarray(cast(box, move.source_dtype, move.target_dtype))


def read_whole(stored: Stored) -> np.ndarray:
    """A tensor in memory, in the dtype that carries its bits."""
    return read_box(stored, (0,) * len(stored.spec.shape), stored.spec.shape)


def read_box(stored: Stored, offset: Box, shape: Box) -> np.ndarray:
    """A box of a tensor in memory, in the dtype that carries its bits."""
    with contextlib.closing(Files()) as files:
        return box_of(stored, offset, shape, _reader(files))


def _runs(box: np.ndarray, at: int, strides: Sequence[int]) -> Iterator[tuple[int, memoryview]]:
    """(first byte, content) of what lies without a gap in the target."""
    if tuple(strides) == box.strides:
        yield at, box.reshape(-1).view(np.uint8).data
    else:
        for index, part in enumerate(box):
            yield from _runs(np.asarray(part, order="C"), at + index * strides[0], strides[1:])


NOT_BY_THE_KERNEL = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What copy_file_range says where file systems differ or do not know it."""


def _copy_run(source: int, begin: int, target: int, at: int, length: int, path: Path, report: Report) -> None:
    """By the kernel, which shares blocks where the file system can; through memory where it refuses."""
    copied = 0
    while copied < length:
        count = min(KERNEL_COPY_BYTES, length - copied)
        try:
            moved = os.copy_file_range(source, target, count, begin + copied, at + copied)
        except OSError as error:
            if error.errno not in NOT_BY_THE_KERNEL:
                raise
            count = min(count, 1 << 23)
            buffer = bytearray(count)
            _read(source, buffer, begin + copied, path)
            _write(target, buffer, at + copied)
            moved = count
        if moved == 0:
            raise _ends_early(path, begin + length)
        copied += moved
        report(moved)


def _reader(files: Files) -> Read:
    def read(path: Path, begin: int, nbytes: int) -> bytearray:
        buffer = bytearray(nbytes)
        _read(files.reading(path), buffer, begin, path)
        return buffer

    return read


def _read(descriptor: int, buffer: bytearray, begin: int, path: Path) -> None:
    view, position = memoryview(buffer), 0
    while position < len(view):
        read = os.preadv(descriptor, [view[position:]], begin + position)
        if read == 0:
            raise _ends_early(path, begin + len(view))
        position += read


def _write(descriptor: int, content: bytes | bytearray | memoryview, at: int) -> None:
    view, position = memoryview(content), 0
    while position < len(view):
        position += os.pwrite(descriptor, view[position:], at + position)


def _ends_early(path: Path, end: int) -> UserError:
    return UserError(
        f"{path} is {path.stat().st_size:,} bytes long, its content goes on to byte {end:,}.",
        "It was cut off, or changed during the conversion; copy it again.",
    )
