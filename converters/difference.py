"""How far apart two tensors are."""

import math
from dataclasses import dataclass

import numpy as np

from converters.tensors import TensorSpec, cast

SLAB = 1 << 22
"""Elements that are compared at a time, in float64."""


@dataclass(frozen=True)
class Difference:
    """What differs between two tensors."""

    elements: int
    of: int
    largest: float
    relative: float
    """`largest` over the largest magnitude of either side."""
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    def __str__(self) -> str:
        if self.shapes[0] != self.shapes[1]:
            return f"is {list(self.shapes[0])} and {list(self.shapes[1])}"
        dtype = "" if self.dtypes[0] == self.dtypes[1] else f"; {self.dtypes[0]} and {self.dtypes[1]}"
        return (
            f"{self.elements:,} of {self.of:,} elements differ, by at most {self.largest:.2e} "
            f"({self.relative:.1e} of the largest){dtype}"
        )


def compared(one: np.ndarray, stored: TensorSpec, other: np.ndarray, wanted: TensorSpec) -> Difference | None:
    """The difference of two tensors, given by the carriers of their bits; None: not a bit of it."""
    dtypes, shapes = (stored.dtype, wanted.dtype), (stored.shape, wanted.shape)
    if stored.shape != wanted.shape:
        return Difference(0, math.prod(stored.shape), math.inf, math.inf, dtypes, shapes)
    count, largest, scale = 0, 0.0, 0.0
    flat, against = one.reshape(-1), other.reshape(-1)
    for first in range(0, flat.size, SLAB):
        a = cast(flat[first : first + SLAB], stored.dtype, "float64")
        b = cast(against[first : first + SLAB], wanted.dtype, "float64")
        differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
        count += int(differs.sum())
        if differs.any():
            apart = np.abs(a[differs] - b[differs])
            largest = max(largest, float(np.nan_to_num(apart, nan=math.inf).max()))
        scale = max(scale, *(float(np.nan_to_num(np.abs(side)).max(initial=0.0)) for side in (a, b)))
    if not count and stored.dtype == wanted.dtype:
        return None
    relative = largest / scale if scale else 0.0 if largest == 0 else math.inf
    return Difference(count, flat.size, largest, relative, dtypes, shapes)
