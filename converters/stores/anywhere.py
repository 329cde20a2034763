"""Tensors under Hugging Face names that files have anywhere and in any form."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from converters.engine import read_box, read_whole
from converters.space import Space, row_major
from converters.stores.safetensors import Index, Place, SafetensorsFolder
from converters.tensors import CARRIER


class Anywhere(SafetensorsFolder):
    """What a view asks of a Hugging Face folder, answered from an address space; for reading."""

    def __init__(self, path: Path, space: Space, notes: Sequence[str] = ()) -> None:
        firsts = {name: stored.placements[0] for name, stored in space.items()}
        places = {name: Place(space[name].spec, first.file or path, first.begin) for name, first in firsts.items()}
        super().__init__(path, places, writable=False, notes=notes)
        self._space = space

    def space(self) -> Space:
        return self._space

    def without(self, names: Collection[str]) -> "Anywhere":
        kept = {name: stored for name, stored in self._space.items() if name not in names}
        return Anywhere(self.path, kept, self.notes)

    def array(self, name: str) -> np.ndarray:
        """The whole tensor: a window on its file where it lies in one as it is, read into memory where not."""
        if self._is_plain(name):
            return super().array(name)
        return read_whole(self._space[name])

    def part(self, name: str, index: Index) -> np.ndarray:
        if self._is_plain(name):
            return super().part(name, index)
        taken = [
            range(size)[own] if isinstance(own, slice) else range(own, own + 1)
            for own, size in zip(index, self.tensors[name].shape, strict=True)
        ]
        offset, shape = (tuple(one[0] for one in taken), tuple(one[-1] + 1 - one[0] for one in taken))
        steps = tuple(slice(None, None, one.step) if isinstance(one, slice) else 0 for one in index)
        part: np.ndarray = read_box(self._space[name], offset, shape)[steps]
        return part

    def _is_plain(self, name: str) -> bool:
        stored = self._space[name]
        one = stored.placements[0]
        strides = row_major(stored.spec.shape, CARRIER[stored.spec.dtype].itemsize)
        whole = one.file is not None and one.encoding is None and one.shape == stored.spec.shape
        return whole and one.strides == strides
