"""Tensors under Hugging Face names that lie in files of another format, wherever those have them."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from converters.engine import read_whole
from converters.space import Space
from converters.stores.safetensors import Place, SafetensorsFolder


class Anywhere(SafetensorsFolder):
    """What a view asks of a Hugging Face folder, answered from an address space; for reading."""

    def __init__(self, path: Path, space: Space) -> None:
        firsts = {name: stored.placements[0] for name, stored in space.items()}
        places = {name: Place(space[name].spec, first.file or path, first.begin) for name, first in firsts.items()}
        super().__init__(path, places, writable=False)
        self._space = space

    def space(self) -> Space:
        return self._space

    def without(self, names: Collection[str]) -> "Anywhere":
        return Anywhere(self.path, {name: stored for name, stored in self._space.items() if name not in names})

    def array(self, name: str) -> np.ndarray:
        """The whole tensor, read into memory."""
        return read_whole(self._space[name])
