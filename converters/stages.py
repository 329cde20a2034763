"""How many layers each pipeline stage has: all equally many, but for the first and the last one where they are told.

Source: `get_num_layers_to_build` in megatron.core.transformer.transformer_block (megatron-core 0.16).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from swift_mega.base.errors import UserError

FIRST, LAST = "--target-first-stage-layers", "--target-last-stage-layers"


@dataclass(frozen=True)
class Stages:
    """A pipeline, each stage of which holds as many runs of layers as it has virtual stages."""

    pipeline: int = 1
    virtual: int = 1
    first: int | None = None
    last: int | None = None
    """Layers of the first and of the last stage. None: as many as each stage between them has."""

    @property
    def told(self) -> dict[str, int]:
        """Option → layers of the stages that are told theirs."""
        both = {FIRST: self.first, LAST: self.last}
        return {option: layers for option, layers in both.items() if layers is not None}

    def layers(self, num_layers: int) -> list[int]:
        """Of each stage. They add up to `num_layers` where `check` has nothing to say."""
        between = self.pipeline - len(self.told)
        each = (num_layers - sum(self.told.values())) // between if between else 0
        own = [each] * self.pipeline
        for stage, layers in ((0, self.first), (-1, self.last)):
            own[stage] = own[stage] if layers is None else layers
        return own

    def check(self, num_layers: int) -> None:
        """Whether the layers can be dealt out.

        Raises:
            UserError: they cannot; says which numbers would do.
        """
        pipelined = {"--target-vpp": self.virtual, **self.told} if self.virtual > 1 else self.told
        for option, number in pipelined.items():
            if self.pipeline == 1:
                raise UserError(f"{option} {number} needs a pipeline.", "Give --target-pp of at least 2.")
        if self._nothing_between:
            raise UserError(
                f"{FIRST} and {LAST} are both given for --target-pp 2 and --target-vpp {self.virtual}, where "
                "megatron-core needs a stage between the first and the last.",
                "Give one of the two; the other stage has the rest.",
            )
        if not self._fits(num_layers):
            raise UserError(self._arithmetic(num_layers), self._way_out(num_layers))

    @property
    def _nothing_between(self) -> bool:
        # With virtual stages `get_transformer_layer_offset` divides by the number of stages between the two.
        return self.virtual > 1 and self.pipeline == len(self.told)

    def _fits(self, num_layers: int) -> bool:
        own = self.layers(num_layers)
        return sum(own) == num_layers and all(layers > 0 and layers % self.virtual == 0 for layers in own)

    def _arithmetic(self, num_layers: int) -> str:
        runs = self.pipeline * self.virtual
        what = f"{num_layers} layers cannot be cut into PP {self.pipeline} × VPP {self.virtual}"
        if not self.told:
            quotient, rest = divmod(num_layers, runs)
            return f"{what} = {runs} equal runs: {num_layers} = {runs} × {quotient} + {rest}."
        left, between = " - ".join(map(str, (num_layers, *self.told.values()))), self.pipeline - len(self.told)
        return (
            f"{what} with {_words(self.told)}: {left} = {num_layers - sum(self.told.values())} are left for "
            f"{between} other stage{'s' * (between != 1)} to share equally, and every stage needs "
            + (f"a multiple of {self.virtual}." if self.virtual > 1 else "at least 1.")
        )

    def _way_out(self, num_layers: int) -> str:
        fitting = [other for other in self._others(num_layers) if other._fits(num_layers)]
        if not fitting:
            indivisible = num_layers % self.virtual
            what = f"a --target-vpp that divides {num_layers}" if indivisible else f"PP × VPP of at most {num_layers}"
            return f"Choose {what}."
        # The longest stage sets the pace, and the shortest one has the memory of the others to spare.
        best = min(fitting, key=lambda other: (max(own := other.layers(num_layers)), -min(own), len(other.told)))
        if not best.told:
            return f"Leave out {' and '.join(self.told)}: the stages can be equal."
        stages = ", ".join(map(str, best.layers(num_layers)))
        return f"Give {_words(best.told)}, for stages of {stages}, or choose a PP × VPP that divides {num_layers}."

    def _others(self, num_layers: int) -> Iterator["Stages"]:
        """The same pipeline with any number of layers in the first and the last stage."""
        numbers = [None, *range(self.virtual, num_layers, self.virtual)]
        for first, last in product(numbers, repeat=2):
            other = Stages(self.pipeline, self.virtual, first, last)
            if not other._nothing_between:
                yield other


def _words(told: dict[str, int]) -> str:
    return " ".join(f"{option} {layers}" for option, layers in told.items())
