"""What a conversion will do, as data: every byte of the target and where it comes from.

A plan is made from two spaces that name the same tensors, without touching a file. It is a list of moves, each a
box of elements at fixed distances from one another in a source file and in a target file; whatever lies without
gaps in both is one run of bytes. Making the plan proves that every element of the target is produced once, and
that every element of the source is used once or is listed as left out.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from converters.space import Box, Encoding, Merge, Placement, Space, Stored, shared, span
from converters.tensors import CARRIER

RUN_BYTES = 1 << 16
"""Runs of at least this length are moves of their own, for the kernel to copy; shorter ones share one."""
SLAB_BYTES = 1 << 25
"""A move that has to pass through memory is cut to about this size."""


class Move(NamedTuple):
    """Copy a box of elements."""

    source: Path
    begin: int
    target: Path
    at: int
    shape: Box
    source_strides: Box
    target_strides: Box
    source_dtype: str
    target_dtype: str
    encoding: Encoding | Merge | None = None
    """Of the source, which is decoded on the way."""

    @property
    def nbytes(self) -> int:
        """Of the target."""
        return math.prod(self.shape) * CARRIER[self.target_dtype].itemsize

    @property
    def casts(self) -> bool:
        return self.source_dtype != self.target_dtype

    @property
    def is_run(self) -> bool:
        """Whether it is one run of bytes on both sides, which the kernel can copy by itself."""
        itemsize = CARRIER[self.source_dtype].itemsize
        one_run = len(self.shape) == 1 and self.source_strides == self.target_strides == (itemsize,)
        return one_run and not self.casts and self.encoding is None

    @property
    def position(self) -> tuple[str, int, int]:
        """Sort key: where the source has it."""
        return str(self.source), self.begin if self.encoding is None else self.encoding.begin, self.begin


@dataclass(frozen=True)
class Target:
    """A folder to be written, as data."""

    space: Space
    files: dict[Path, int]
    """File → its size in bytes. All of it is reserved before anything is copied, and is zero."""
    fixed: list[tuple[Path, int, bytes]] = field(default_factory=list)
    """(file, first byte, content) of what does not come from the source: headers."""
    closing: list[tuple[Path, bytes]] = field(default_factory=list)
    """Small files that are written when everything else is on the disk, in this order."""

    def joined(self, other: "Target") -> "Target":
        """Both, written as one."""
        return Target(
            self.space | other.space, self.files | other.files, self.fixed + other.fixed, self.closing + other.closing
        )


@dataclass(frozen=True)
class Plan:
    """The moves of one conversion, in the order in which the source has them on disk."""

    moves: list[Move]
    unused: Counter[str]
    """Tensor of the source → elements that have no place in the target (padding of the vocabulary)."""
    zeros: Counter[str]
    """Tensor of the target → elements that are zero and come from nowhere."""

    @property
    def sources(self) -> list[Path]:
        """The files that are read."""
        others = {file for move in self.moves if move.encoding is not None for file in move.encoding.files}
        return sorted({move.source for move in self.moves} | others)

    @property
    def nbytes(self) -> int:
        return sum(move.nbytes for move in self.moves)

    @property
    def through_memory(self) -> int:
        """Bytes that the kernel cannot copy by itself."""
        return sum(move.nbytes for move in self.moves if not move.is_run)

    @property
    def largest_in_memory(self) -> int:
        """Bytes of source and target of the largest move that passes through memory."""
        return max((_span(move) + move.nbytes for move in self.moves if not move.is_run), default=0)

    @property
    def decodes(self) -> Counter[tuple[str, str]]:
        """(encoding, dtype) → elements."""
        found: Counter[tuple[str, str]] = Counter()
        for move in self.moves:
            if move.encoding is not None:
                found[move.encoding.name, move.source_dtype] += math.prod(move.shape)
        return found

    @property
    def casts(self) -> Counter[tuple[str, str]]:
        """(from, to) → elements."""
        found: Counter[tuple[str, str]] = Counter()
        for move in self.moves:
            if move.casts:
                found[move.source_dtype, move.target_dtype] += math.prod(move.shape)
        return found


def make_plan(source: Space, target: Space) -> Plan:
    """The moves that fill `target` from `source`; both hold the same tensors in the same shapes.

    Raises:
        ValueError: an element of the target would not be produced exactly once (a fault of a store or a rule).
    """
    moves: list[Move] = []
    unused: Counter[str] = Counter()
    zeros: Counter[str] = Counter()
    for name, wanted in target.items():
        moves += _merged(_moves(name, source[name], wanted, unused, zeros))
        if wanted.again:
            moves += _merged(_boxes(name, source[name], wanted.spec.dtype, wanted.again, Counter(), Counter()))
    pieces = (piece for move in moves for run in _runs(move) for piece in _cut(run))
    return Plan(sorted(pieces, key=lambda move: move.position), unused, zeros)


def _moves(name: str, stored: Stored, wanted: Stored, unused: Counter[str], zeros: Counter[str]) -> Iterator[Move]:
    """The boxes that source and target share, and a proof that they are everything."""
    if stored.spec.shape != wanted.spec.shape:
        raise ValueError(f"`{name}` is {stored.spec.shape} in the source and {wanted.spec.shape} in the target")
    volume = sum(math.prod(placement.shape) for placement in wanted.placements)
    if volume != math.prod(wanted.spec.shape):
        raise ValueError(f"`{name}`: {volume:,} of {math.prod(wanted.spec.shape):,} elements have a place")
    yield from _boxes(name, stored, wanted.spec.dtype, wanted.placements, unused, zeros)


def _boxes(
    name: str,
    stored: Stored,
    dtype: str,
    placements: Sequence[Placement],
    unused: Counter[str],
    zeros: Counter[str],
) -> Iterator[Move]:
    """The moves that fill `placements` from a stored tensor, and a proof that they fill all of them."""
    produced = 0
    for one, other, offset, shape in shared(stored.placements, placements):
        volume = math.prod(shape)
        produced += volume
        if other.file is None:
            unused[name] += volume if one.file is not None else 0
        elif one.file is None:
            zeros[name] += volume
        else:
            yield Move(
                one.file,
                one.inside(offset),
                other.file,
                other.inside(offset),
                *_simplified(shape, one.strides, other.strides),
                one.dtype or stored.spec.dtype,
                other.dtype or dtype,
                one.encoding,
            )
    wanted = sum(math.prod(placement.shape) for placement in placements)
    if produced != wanted:
        raise ValueError(f"`{name}`: {produced:,} of {wanted:,} elements would be produced")


def _simplified(shape: Box, source: Box, target: Box) -> tuple[Box, Box, Box]:
    """The same elements in as few axes as possible, in the order in which the target has them.

    What follows on without a gap on both sides is one axis.
    """
    axes: list[tuple[int, int, int]] = []
    for size, near, far in sorted(zip(shape, source, target, strict=True), key=lambda axis: axis[2]):
        if size == 1 and axes:
            continue
        if axes and near == axes[-1][0] * axes[-1][1] and far == axes[-1][0] * axes[-1][2]:
            axes[-1] = (size * axes[-1][0], axes[-1][1], axes[-1][2])
        elif axes and axes[-1][0] == 1:
            axes[-1] = (size, near, far)
        else:
            axes.append((size, near, far))
    sizes, nears, fars = zip(*reversed(axes), strict=True) if axes else ((1,), (1,), (1,))
    return tuple(sizes), tuple(nears), tuple(fars)


def _merged(moves: Iterable[Move]) -> Iterator[Move]:
    """Moves of one shape at equal distances, such as every second row, as one with an axis more."""
    held: Move | None = None
    count, step, stride = 1, 0, 0
    for move in sorted(moves, key=lambda move: (str(move.target), move.at)):
        if held is not None and move.nbytes < RUN_BYTES and _alike(held, move):
            apart = move.begin - held.begin, move.at - held.at
            # Where sources are far apart, as q, k and v are, the next one may also lie before.
            if apart[0] > 0 and (count == 1 or apart == (count * step, count * stride)):
                if count == 1:
                    step, stride = apart
                count += 1
                continue
        if held is not None:
            yield _repeated(held, count, step, stride)
        held, count = move, 1
    if held is not None:
        yield _repeated(held, count, step, stride)


def _alike(one: Move, other: Move) -> bool:
    return (one.source, one.target, *one[4:]) == (other.source, other.target, *other[4:])


def _repeated(move: Move, count: int, step: int, stride: int) -> Move:
    if count == 1:
        return move
    axes = _simplified((count, *move.shape), (step, *move.source_strides), (stride, *move.target_strides))
    return move._replace(shape=axes[0], source_strides=axes[1], target_strides=axes[2])


def _runs(move: Move) -> Iterator[Move]:
    """The long runs of bytes that a move consists of; the move itself where they are short."""
    itemsize = CARRIER[move.source_dtype].itemsize
    *outer, length = move.shape
    contiguous = move.source_strides[-1] == move.target_strides[-1] == itemsize
    if not outer or move.casts or move.encoding or not contiguous or length * itemsize < RUN_BYTES:
        yield move
        return
    for index in itertools.product(*map(range, outer)):
        near, far = (
            sum(i * stride for i, stride in zip(index, strides, strict=False))
            for strides in (move.source_strides, move.target_strides)
        )
        yield move._replace(
            begin=move.begin + near,
            at=move.at + far,
            shape=(length,),
            source_strides=(itemsize,),
            target_strides=(itemsize,),
        )


def _cut(move: Move) -> Iterator[Move]:
    """Slabs of a move that passes through memory; along its first axis, which is the longest way in the source."""
    rows, near, far = move.shape[0], move.source_strides[0], move.target_strides[0]
    if move.is_run or near < max(move.source_strides) or rows == 1:
        yield move
        return
    at_once = max(1, SLAB_BYTES * rows // max(1, _span(move)))
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        yield move._replace(begin=move.begin + first * near, at=move.at + first * far, shape=(count, *move.shape[1:]))


def _span(move: Move) -> int:
    """Bytes of the source from the first element to the last."""
    return span(move.shape, move.source_strides, CARRIER[move.source_dtype].itemsize)
