"""The bare way to read a tensor out of its placements: one element box at a time, by memory map."""

import numpy as np

from converters.space import Stored
from converters.tensors import CARRIER


def assembled(stored: Stored) -> np.ndarray:
    """The whole tensor in the dtype that carries its bits."""
    carrier = CARRIER[stored.spec.dtype]
    whole = np.zeros(stored.spec.shape, carrier)
    for placement in stored.placements:
        if placement.file is None:
            continue
        box = tuple(slice(o, o + s) for o, s in zip(placement.offset, placement.shape, strict=True))
        content = np.frombuffer(placement.file.read_bytes(), np.uint8)[placement.begin :]
        whole[box] = np.ndarray(placement.shape, carrier, content.tobytes(), strides=placement.strides)
    return whole
