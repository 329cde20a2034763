"""Whether a target already is what a conversion would write: for a machine that comes when the others are done."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from converters import engine
from converters.plan import Move, Target
from converters.space import span

BLOCK_BYTES = 1 << 23


def is_finished(target: Target, staging: Path, folder: Path, moves: Iterable[Move]) -> bool:
    """Compare byte for byte, weights and the small files that complete them.

    Args:
        target: as it is planned in `staging`.
        staging: the folder in which it would be put together.
        folder: what is compared.
        moves: which are looked at; one machine's share.
    """

    def there(path: Path) -> Path:
        return folder / path.relative_to(staging)

    sizes = (there(path).is_file() and there(path).stat().st_size == size for path, size in target.files.items())
    small = [(path, 0, content) for path, content in target.closing] + target.fixed
    if not all(sizes) or not all(_begins(there(path), at, content) for path, at, content in small):
        return False
    with contextlib.closing(engine.Files()) as files:
        return all(_is_done(move, files, there(move.target)) for move in moves)


def _begins(file: Path, at: int, content: bytes) -> bool:
    """Whether a file has this content from byte `at` on."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return os.pread(stream.fileno(), len(content), at) == content


def _is_done(move: Move, files: engine.Files, file: Path) -> bool:
    there = files.reading(file)
    if move.is_run:
        here = files.reading(move.source)
        blocks = ((at, min(BLOCK_BYTES, move.nbytes - at)) for at in range(0, move.nbytes, BLOCK_BYTES))
        return all(os.pread(here, size, move.begin + at) == os.pread(there, size, move.at + at) for at, size in blocks)
    box = engine.load(move, files)
    buffer = os.pread(there, span(move.shape, move.target_strides, box.itemsize), move.at)
    return np.ndarray(move.shape, box.dtype, buffer, strides=move.target_strides).tobytes() == box.tobytes()
