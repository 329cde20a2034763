"""Numbers that a file has in fewer bits, made floating-point numbers again, a few rows at a time.

Two ways. ggml's types have all that belongs to a row in the row; `gguf` knows how they are packed. Where factors lie
apart from the numbers (fp8, MXFP4), a byte can stand for few numbers, so that what it stands for under each factor is
computed once and looked up.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from converters.space import CAST, MERGED, Box, Encoding, Merge, Scales, Stored, common, span
from converters.tensors import CARRIER, cast

Read = Callable[[Path, int, int], bytearray]
"""File, first byte and length → content."""

PLUS_ONE = "float32 plus one"
"""Of an encoding that has one added to each number."""
E4M3, MXFP4 = "float8_e4m3fn", "mxfp4"
"""Names of the encodings that have their factors elsewhere; all others but `PLUS_ONE` are ggml's."""
_HOW = {
    E4M3: "decoded from {name} to {dtype}, rounded as transformers rounds what it dequantises",
    MERGED: "computed from {name} in float32, and rounded once to {dtype}",
    PLUS_ONE: "stored in {dtype} plus one, which is taken off again, and rounded",
    CAST: "cast to {dtype}, {name}",
}
AT_ONCE = 1 << 18
"""Numbers that are looked up or computed at a time; what is made of them on the way fits into a cache."""


def described(name: str, dtype: str) -> str:
    """How the numbers of an encoding become those of `dtype`, after "elements are"."""
    return _HOW.get(name, "decoded from {name} to {dtype}, which is exact").format(name=name, dtype=dtype)


def content(
    file: Path, begin: int, nbytes: int, encoding: Encoding | Merge | None, read: Read
) -> bytearray | memoryview:
    """Bytes `begin … begin+nbytes` of a file, or of the numbers that are decoded or computed of what it has."""
    if encoding is None:
        return read(file, begin, nbytes)
    row = encoding.row_elements * CARRIER[encoding.dtype].itemsize
    first, end = begin // row, -(-(begin + nbytes) // row)
    if isinstance(encoding, Merge):
        numbers = _merged(encoding, first, end - first, read)
    else:
        numbers = _decoded(encoding, file, first, end, read)
    return np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data[begin - first * row :][:nbytes]


def box_of(stored: Stored, offset: Box, shape: Box, read: Read) -> np.ndarray:
    """A box of a tensor in memory, in the dtype that carries its bits."""
    box: np.ndarray = np.zeros(shape, CARRIER[stored.spec.dtype])
    for one in stored.placements:
        part = common(one.offset, one.shape, offset, shape)
        if one.file is None or part is None:
            continue
        begin, size = part
        dtype = one.dtype or stored.spec.dtype
        carrier = CARRIER[dtype]
        buffer = content(one.file, one.inside(begin), span(size, one.strides, carrier.itemsize), one.encoding, read)
        place = tuple(slice(b - o, b - o + s) for b, o, s in zip(begin, offset, size, strict=True))
        box[place] = cast(np.ndarray(size, carrier, buffer, strides=one.strides), dtype, stored.spec.dtype)
    return box


def _merged(merge: Merge, first: int, rows: int, read: Read) -> np.ndarray:
    """Whole rows of W + s·B·A; with a magnitude, each row brought to that length (https://arxiv.org/abs/2402.09353)."""

    def floats(stored: Stored, offset: Box, shape: Box) -> np.ndarray:
        return cast(box_of(stored, offset, shape, read), stored.spec.dtype, "float32")

    columns = merge.base.spec.shape[1:]
    found = np.empty((rows, *columns), CARRIER[merge.dtype])
    a = None if merge.added is None else floats(merge.added.a, (0, 0), merge.added.a.spec.shape)
    step = max(1, AT_ONCE // math.prod(columns))
    for row in range(first, first + rows, step):
        count = min(step, first + rows - row)
        weight = floats(merge.base, (row, *(0,) * len(columns)), (count, *columns))
        if merge.added is not None and a is not None:
            with np.errstate(invalid="ignore", over="ignore"):  # a base may have any bits
                weight = weight + merge.added.scale * (floats(merge.added.b, (row, 0), (count, len(a))) @ a)
                if merge.added.magnitude is not None:
                    length = np.linalg.norm(weight, axis=1)
                    weight *= (floats(merge.added.magnitude, (row,), (count,)) / length)[:, None]
        found[row - first :][:count] = cast(weight, "float32", merge.dtype)
    return found


def _decoded(encoding: Encoding, file: Path, first: int, end: int, read: Read) -> np.ndarray:
    """Rows `first … end` of the numbers of which `file` has the encoded ones."""
    stored = read(file, encoding.begin + first * encoding.row_bytes, (end - first) * encoding.row_bytes)
    packed = np.frombuffer(stored, np.uint8).reshape(-1, encoding.row_bytes)
    if encoding.name == PLUS_ONE:
        numbers: np.ndarray = packed.view(np.float32) - np.float32(1)
        return numbers
    if encoding.scales is None:
        return _of_ggml(packed, encoding.name)
    return _looked_up(packed, encoding, encoding.scales, first, read)


def _of_ggml(packed: np.ndarray, name: str) -> np.ndarray:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return np.ascontiguousarray(dequantize(packed, GGMLQuantizationType[name]), np.float32)


def _looked_up(packed: np.ndarray, encoding: Encoding, scales: Scales, first: int, read: Read) -> np.ndarray:
    """For each byte of whole rows the bits of what it stands for under the factor of its block.

    Args:
        packed: the rows.
        encoding: of their tensor.
        scales: its factors.
        first: number of the first of the rows.
        read: where to get the factors.
    """
    of_byte = _numbers_of_bytes(encoding.name)
    block_rows, block_bytes = scales.block[0], scales.block[1] // of_byte.shape[1]
    down, across = -(-scales.rows // block_rows), -(-packed.shape[1] // block_bytes)
    rows = np.arange(first, first + len(packed))
    line = rows // scales.rows * down + rows % scales.rows // block_rows
    line_bytes = across * CARRIER[scales.dtype].itemsize
    begin, line = int(line[0]), line - line[0]
    factors = read(scales.file, scales.begin + begin * line_bytes, (int(line[-1]) + 1) * line_bytes)
    stored = np.frombuffer(factors, CARRIER[scales.dtype]).reshape(-1, across)
    if scales.dtype == "uint8":
        table, number = _table_of_exponents(encoding.name, encoding.dtype), stored.astype(np.intp)
    else:
        table = _table(of_byte, cast(stored.reshape(-1), scales.dtype, "float64"), encoding.dtype)
        number = np.arange(stored.size).reshape(stored.shape)
    found = np.empty(packed.shape, table.dtype)
    step = max(1, AT_ONCE // packed.shape[1])
    for part in (slice(row, row + step) for row in range(0, len(packed), step)):
        own = line[part]
        entries = np.repeat(256 * number[own[0] : own[-1] + 1], block_bytes, axis=1)[:, : packed.shape[1]]
        entries = entries[own - own[0]]
        entries += packed[part]
        np.take(table, entries, out=found[part], mode="clip")
    return found


def _table(of_byte: np.ndarray, factors: np.ndarray, dtype: str) -> np.ndarray:
    """Entry 256 × f + b: the bits of all numbers that byte `b` stands for under factor `f`."""
    # float64 holds the products, so that they are rounded to float32 once, as float32 arithmetic does.
    with np.errstate(over="ignore", invalid="ignore"):
        products = (factors[:, None, None] * of_byte).astype(np.float32).reshape(-1, of_byte.shape[1])
    numbers = np.ascontiguousarray(cast(products, "float32", dtype))
    return numbers.view(f"u{numbers.itemsize * numbers.shape[1]}")[:, 0]


@functools.cache
def _table_of_exponents(name: str, dtype: str) -> np.ndarray:
    """The table of all factors that are a power of two in one byte: 2⁻¹²⁷ … 2¹²⁸."""
    return _table(_numbers_of_bytes(name), np.ldexp(1.0, np.arange(256) - 127), dtype)


@functools.cache
def _numbers_of_bytes(name: str) -> np.ndarray:
    """[256, numbers in a byte]"""
    if name == MXFP4:
        # The low half of a byte comes first; each has a sign, two bits of exponent and one more.
        magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        numbers = np.concatenate([magnitudes, -magnitudes])
        return np.stack([numbers[np.arange(256) & 15], numbers[np.arange(256) >> 4]], axis=1)
    # A sign, four bits of exponent (0: no leading one) and three more; no infinity, and NaN where all bits are set.
    exponent, fraction = np.divmod(np.arange(128), 8)
    magnitudes = np.ldexp(np.where(exponent == 0, fraction, fraction + 8.0), np.maximum(exponent, 1) - 10)
    magnitudes[127] = np.nan
    return np.concatenate([magnitudes, -magnitudes])[:, None]
