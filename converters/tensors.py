"""What every store says about a tensor, and the numpy dtype that carries its bits.

numpy has no bfloat16 and no float8. Nothing here computes, so their bits travel as unsigned integers
of the same width.
"""

from typing import NamedTuple

import numpy as np


class TensorSpec(NamedTuple):
    """Shape and dtype (torch's name for it) of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * CARRIER[self.dtype].itemsize


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
