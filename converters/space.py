"""One address space for every kind of checkpoint: which bytes of which file are which box of which tensor.

A *placement* is a box (offset, shape) of a tensor whose elements lie in a file at fixed distances from one
another. A tensor is stored when its placements tile it. Hugging Face folders, `torch_dist` checkpoints of any
layout and legacy `mp_rank` files differ in nothing but their placements, so that copying between any two of
them is the same operation: cut both into the boxes they share.
"""

import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from converters.tensors import TensorSpec

Box = tuple[int, ...]
"""An offset into a tensor or the shape of a part of it, one number for each axis."""


class Scales(NamedTuple):
    """The factors of an encoded tensor, a matrix or several of one shape: one for each block, row by row."""

    file: Path
    begin: int
    dtype: str
    """`uint8`: exponents of two, plus 127."""
    block: tuple[int, int]
    """Rows and columns of the numbers that share a factor; fewer at the lower and right edge of a matrix."""
    rows: int
    """Of each matrix; no block reaches into the next."""


class Encoding(NamedTuple):
    """How a file has the numbers of a tensor in another form than as they are: row by row, to be decoded."""

    name: str
    begin: int
    """First byte of the tensor in the file. Bytes of a placement are those of the decoded numbers."""
    row_bytes: int
    row_elements: int
    dtype: str = "float32"
    """Of the decoded numbers."""
    scales: Scales | None = None
    """Where the factors are. None: in the rows."""

    @property
    def files(self) -> list[Path]:
        """What is read besides the tensor's own file."""
        return [] if self.scales is None else [self.scales.file]


MERGED, CAST = "the base and an adapter", "as those that an adapter changes"
"""What numbers are computed of."""


class LowRank(NamedTuple):
    """What LoRA adds to a weight [rows, columns]: scale · b · a."""

    a: "Stored"
    """[rank, columns]"""
    b: "Stored"
    """[rows, rank]"""
    scale: float
    magnitude: "Stored | None"
    """[rows]: DoRA's, the length that each row is brought to."""


class Merge(NamedTuple):
    """Numbers that are computed as they are read: those of a weight, with what an adapter adds to it."""

    base: "Stored"
    """[rows, columns], of any dtype."""
    added: LowRank | None
    """None: nothing; the numbers are cast only."""
    dtype: str
    """Of the result; the way there is float32."""

    @property
    def name(self) -> str:
        return CAST if self.added is None else MERGED

    @property
    def begin(self) -> int:
        """First byte of the weight in its file."""
        return self.base.placements[0].begin

    @property
    def row_elements(self) -> int:
        return math.prod(self.base.spec.shape[1:])

    @property
    def files(self) -> list[Path]:
        """What is read."""
        factors = [] if self.added is None else [self.added.a, self.added.b, self.added.magnitude]
        stored = [one for one in (self.base, *factors) if one is not None]
        files = [one.file for tensor in stored for one in tensor.placements if one.file is not None]
        inner = [own for one in self.base.placements if one.encoding for own in one.encoding.files]
        return [*dict.fromkeys(files + inner)]


class Placement(NamedTuple):
    """Where a box of a tensor lies."""

    offset: Box
    shape: Box
    file: Path | None
    """None: zeros, which no file holds."""
    begin: int
    """First byte in `file`."""
    strides: Box
    """Bytes between neighbours along each axis: `row_major` or, where the file is transposed, any other."""
    encoding: Encoding | Merge | None = None
    """None: the file has the numbers as they are."""
    dtype: str | None = None
    """Of the numbers there. None: the tensor's, as nearly always."""

    def inside(self, offset: Box) -> int:
        """The first byte of the element at `offset` of the tensor."""
        return self.begin + sum(s * (o - own) for s, o, own in zip(self.strides, offset, self.offset, strict=True))


@dataclass(frozen=True)
class Stored:
    """A tensor and all its placements."""

    spec: TensorSpec
    placements: Sequence[Placement]
    again: Sequence[Placement] = ()
    """Boxes that are stored once more, as of what every rank has a copy; written like `placements`, never read."""


Space = dict[str, Stored]
"""Tensor name → where it is. Names are Megatron's canonical keys, or Hugging Face's."""


def check_tiling(name: str, spec: TensorSpec, boxes: Sequence[tuple[Box, Box]]) -> None:
    """Boxes that stay inside, do not overlap, and have the tensor's volume in sum, tile it.

    Raises:
        ValueError: they do not.
    """
    for offset, shape in boxes:
        if any(o < 0 or o + s > whole for o, s, whole in zip(offset, shape, spec.shape, strict=True)):
            raise ValueError(f"the chunk of `{name}` at {list(offset)} leaves its shape {list(spec.shape)}")
    covered, whole = sum(math.prod(shape) for _, shape in boxes), math.prod(spec.shape)
    if covered != whole or len({offset for offset, _ in boxes}) != len(boxes) or _overlap(boxes):
        raise ValueError(f"the chunks of `{name}` hold {covered:,} elements of {whole:,}, or overlap")


def _overlap(boxes: Sequence[tuple[Box, Box]]) -> bool:
    """Whether two boxes share an element.

    Boxes with different indices along the leading axes of size one cannot; of the others, sorted by offset, only
    those that begin before a box ends can.
    """
    depth = _leading_ones([shape for _, shape in boxes])
    by_index: dict[Box, list[tuple[Box, Box]]] = defaultdict(list)
    for offset, shape in boxes:
        by_index[offset[:depth]].append((offset[depth:], shape[depth:]))
    return any(_overlap_in(sorted(group)) for group in by_index.values())


def _overlap_in(boxes: Sequence[tuple[Box, Box]]) -> bool:
    for number, (offset, shape) in enumerate(boxes):
        for other, extent in itertools.islice(boxes, number + 1, None):
            if not offset or other[0] >= offset[0] + shape[0]:
                break
            if common(offset, shape, other, extent):
                return True
    return False


def common(offset: Box, shape: Box, other: Box, extent: Box) -> tuple[Box, Box] | None:
    """The box that two boxes share, if they do."""
    begin = tuple(map(max, offset, other))
    size = tuple(min(a + s, b + t) - c for a, s, b, t, c in zip(offset, shape, other, extent, begin, strict=True))
    return (begin, size) if all(length > 0 for length in size) else None


def shared(ones: Sequence[Placement], others: Sequence[Placement]) -> Iterator[tuple[Placement, Placement, Box, Box]]:
    """(one, other, offset, shape) of every box that a placement of `ones` shares with one of `others`.

    A stacked tensor has a placement for each of thousands of experts on both sides; comparing only those with
    the same leading index keeps this linear.
    """
    depth = _leading_ones([placement.shape for placement in (*ones, *others)])
    by_index: dict[Box, list[Placement]] = defaultdict(list)
    for other in others:
        by_index[other.offset[:depth]].append(other)
    for one in ones:
        for other in by_index[one.offset[:depth]]:
            if box := common(one.offset, one.shape, other.offset, other.shape):
                yield one, other, *box


def in_order_of(space: Space, boxes: Iterable[tuple[str, Box, Box]]) -> list[tuple[str, Box, Box]]:
    """(tensor, offset, shape) sorted by where `space` has the first element of the box, or of one before it."""
    sorted_placements = {name: sorted(stored.placements) for name, stored in space.items()}

    def position(box: tuple[str, Box, Box]) -> tuple[str, int]:
        placements = sorted_placements[box[0]]
        placement = placements[max(0, bisect_right(placements, box[1], key=lambda one: one.offset) - 1)]
        return str(placement.file or ""), placement.begin

    return sorted(boxes, key=position)


def extended(stored: Stored, rows: int) -> Stored:
    """The tensor with zeros below it, up to `rows` rows."""
    have, *rest = stored.spec.shape
    if rows <= have:
        return stored
    zeros = Placement((have, *(0,) * len(rest)), (rows - have, *rest), None, 0, (0,) * len(stored.spec.shape))
    return Stored(TensorSpec((rows, *rest), stored.spec.dtype), [*stored.placements, zeros], stored.again)


def _leading_ones(shapes: Sequence[Box]) -> int:
    """Along how many leading axes none of the shapes is longer than one."""
    depth = min(map(len, shapes), default=0)
    for axis in range(depth):
        if any(shape[axis] != 1 for shape in shapes):
            return axis
    return depth


def row_major(shape: Box, itemsize: int) -> Box:
    """Bytes between neighbours along each axis of an array that lies row by row without gaps."""
    return tuple(itertools.accumulate(reversed((*shape[1:], itemsize)), lambda a, b: a * b))[::-1] if shape else ()


def span(shape: Box, strides: Box, itemsize: int) -> int:
    """Bytes from the first element to the last, both included."""
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + itemsize
