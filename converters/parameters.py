"""How many parameters a model or an adapter has, whatever its files have besides: padding, copies, scales."""

import math
from dataclasses import dataclass

from converters.families._common import EMBEDDING, OUTPUT
from converters.source import Source
from converters.space import Space

VOCABULARY = (EMBEDDING, OUTPUT.removesuffix("weight"))
"""How the keys begin of what has a row for each token; the output layer's factors of an adapter have them, too."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of elements."""

    count: int
    """Of the model: tied weights once, of what is quantised the numbers that it stands for."""
    padding: int
    """Rows of no token, below embedding and output layer."""
    unmapped: int
    """Of tensors that the family knows nothing of."""

    def __str__(self) -> str:
        padding = f"; {self.padding:,} elements pad the vocabulary" if self.padding else ""
        unmapped = (
            f"; {self.unmapped:,} elements are of tensors that Megatron has no place for" if self.unmapped else ""
        )
        return f"{self.count:,} parameters{padding}{unmapped}"


def parameters(source: Source) -> Parameters:
    """The parameters of an opened model or adapter."""
    stored = source.view is None and source.kind != "peft"  # else the padding is in no file
    padding = sum(
        (spec.shape[0] - source.arguments.vocab_size) * math.prod(spec.shape[1:])
        for key, spec in ((key, one.spec) for key, one in source.space.items())
        if key.startswith(VOCABULARY) and spec.shape[0] > source.arguments.vocab_size
    )
    return Parameters(_elements(source.space) - padding, padding if stored else 0, _elements(source.set_aside))


def _elements(space: Space) -> int:
    return sum(math.prod(stored.spec.shape) for stored in space.values())
