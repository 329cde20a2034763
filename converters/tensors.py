"""What every store says about a tensor, and the numpy dtype that carries its bits.

numpy has no bfloat16 and no float8. Nothing here computes, so their bits travel as unsigned integers
of the same width.
"""

import math
from typing import NamedTuple

import numpy as np


class TensorSpec(NamedTuple):
    """Shape and dtype (torch's name for it) of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * CARRIER[self.dtype].itemsize


CARRIER: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float8_e4m3fn": np.dtype("u1"),
    "float8_e5m2": np.dtype("u1"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
"""torch's dtype name → the numpy dtype of the same width."""

WEIGHT_DTYPES = ("float32", "bfloat16", "float16")
"""What a weight may be stored as; anything else is a quantised model or a damaged file."""


WIDEST = "float32"
"""Holds the numbers of all of them exactly."""


def cast(array: np.ndarray, stored: str, dtype: str) -> np.ndarray:
    """The same numbers in another dtype, rounded to nearest even where that is narrower; carriers on both sides.

    Raises:
        ValueError: a dtype that numbers cannot be cast from or to here.
    """
    if stored == dtype:
        return array
    if stored not in FLOATS or dtype not in FLOATS:
        raise ValueError(f"no cast from {stored} to {dtype}")
    wide = _from_bfloat16(array) if stored == "bfloat16" else array
    with np.errstate(over="ignore"):  # beyond the range of float16 is infinity, as torch has it
        return _to_bfloat16(wide) if dtype == "bfloat16" else wide.astype(CARRIER[dtype])


FLOATS = ("float64", "float32", "bfloat16", "float16")


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of a float32, rounded to nearest even; a NaN stays one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
