"""A Hugging Face folder seen as Megatron tensors.

`MegatronView` answers for any box (offset, shape) of any Megatron tensor which bytes of which Hugging
Face tensors it is, and reads or writes them. Conversion asks for whole layers; a training rank asks
for its tensor-parallel slice of its pipeline stage's layers; both get it from the same rules.

Every tensor of the store is accounted for when the view is made (`converters.accounting`).
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from converters.accounting import account, hf_shapes
from converters.config_table import Config, MegatronArguments
from converters.family import Family, sizes
from converters.rules import Rule, check_parts
from converters.stores.safetensors import SafetensorsFolder
from converters.tensors import CARRIER, WIDEST, TensorSpec, cast
from swift_mega.base.errors import UserError

Box = tuple[int, ...]
T = TypeVar("T")


class Run(NamedTuple):
    """Consecutive rows of the box that are every `step`-th row of one source (None: zeros)."""

    row: int
    source: int | None
    first: int
    rows: int
    step: int

    @property
    def taken(self) -> slice:
        """Of the source's rows."""
        return slice(self.first, self.first + (self.rows - 1) * self.step + 1, self.step)


class Source(NamedTuple):
    """One Hugging Face tensor, or what of it belongs to one position on the stacked axes."""

    name: str
    within: Box
    """Position on its leading axes that the Megatron tensor stacks."""


class Piece(NamedTuple):
    """A box of a Megatron tensor that is a box of one Hugging Face tensor, or zeros: what can be copied as bytes."""

    offset: Box
    """In the Megatron tensor."""
    shape: Box
    """Like `offset`, with the leading stack axes, each of size 1. The last `len(first)` sizes are the source's."""
    source: str | None
    """Name of the Hugging Face tensor. None: zeros."""
    first: Box
    """Where the box begins in the source."""
    transposed: bool = False
    """The last two axes are the other way round in the source, in `first` too."""
    steps: Box = ()
    """Like `first`: which elements of the source are taken along each axis, such as every second. (): all."""


class MegatronView:
    """The Megatron tensors of one Hugging Face model, read from or written to its safetensors folder.

    Args:
        family: whose rules apply.
        hf_config: content of config.json.
        store: opened for reading, or created with `hf_tensors` for writing.
        padded_vocab_size: rows of the Megatron embedding.

    Raises:
        UserError: a tensor that no rule wants, that is missing, or that has another shape or dtype.
    """

    def __init__(self, family: Family, hf_config: Config, store: SafetensorsFolder, padded_vocab_size: int) -> None:
        self.family = family
        self.arguments: MegatronArguments = family.as_stored(family.megatron_arguments(hf_config), store.tensors)
        self.store = store
        self._sizes = sizes(self.arguments, padded_vocab_size)
        _check_padding(self.arguments.vocab_size, padded_vocab_size)
        self.form = family.form_of(store.tensors, self.arguments)
        """Which of the family's forms the folder has. None: there is only one."""
        rules = family.rules_for(self.arguments, self.form)
        check_parts(rules, self._sizes)
        self._rules = {rule.megatron: rule for rule in rules}
        self._maps = {key: rule.segments(self._sizes) for key, rule in self._rules.items()}
        self._starts = {
            key: list(itertools.accumulate((segment.rows for segment in segments), initial=0))
            for key, segments in self._maps.items()
        }
        accounted = account(family, self.arguments, self._sizes, store, rules)
        self.notes = [*store.notes, *accounted.notes]
        """What is left out of the source, and why; for the user to read."""
        self.copies = accounted.copies
        """Hugging Face tensor → the one of which it is a copy, byte for byte; no Megatron tensor has a place for it."""
        self.mixed: dict[str, dict[str, str]] = {}
        """Megatron key → dtype → the name of a tensor; of what is made of tensors of several dtypes."""
        self.tensors: dict[str, TensorSpec] = {key: self._spec(rule) for key, rule in self._rules.items()}
        """Megatron key → global shape, layer axis first where stacked, and dtype, which holds all numbers exactly."""
        self._copies_of: dict[str, list[str]] = {}
        for copy, name in self.copies.items():
            self._copies_of.setdefault(name, []).append(copy)

    def rule(self, key: str) -> Rule:
        """The rule that makes `key`."""
        return self._rules[key]

    def read(self, key: str, offset: Box, shape: Box) -> np.ndarray:
        """The box `offset … offset+shape` of Megatron tensor `key`, in the dtype that carries its bits."""
        self._check_box(key, offset, shape)
        dtype = self.tensors[key].dtype
        box = np.empty(shape, CARRIER[dtype])
        for layer, sources in self._layers(key, offset, shape):
            for run, columns in self._runs(key, offset, shape):
                rows = box[layer][run.row : run.row + run.rows]
                if run.source is None:
                    rows[...] = 0
                else:
                    source = sources[run.source]
                    rows[...] = cast(self._window(key, source, run, columns), self.store.dtype(source.name), dtype)
        return box

    def write(self, key: str, offset: Box, array: np.ndarray) -> None:
        """Put a box back into the Hugging Face tensors. Padding rows have no place there and are dropped."""
        self._check_box(key, offset, array.shape)
        dtype = self.tensors[key].dtype
        if array.dtype != CARRIER[dtype]:
            raise TypeError(f"{key} is {dtype}, got numpy {array.dtype}")
        for layer, sources in self._layers(key, offset, array.shape):
            for run, columns in self._runs(key, offset, array.shape):
                if run.source is None:
                    continue
                rows = array[layer][run.row : run.row + run.rows]
                name, within = sources[run.source]
                for same in (name, *self._copies_of.get(name, ())):
                    window = self._window(key, Source(same, within), run, columns)
                    window[...] = cast(rows, dtype, self.store.dtype(same))

    def pieces(self, key: str) -> Iterator[Piece]:
        """All of `key`, as the boxes it is put together from, in its own order; each element is in one of them."""
        rule, whole = self._rules[key], self.tensors[key].shape
        depth = len(rule.stack)
        origin, begin = (0,) * len(whole), (0,) * (len(whole) - depth - 1)
        turned, ones = rule.operation.transposed, (1,) * len(begin)
        for layer, sources in self._layers(key, origin, whole):
            for run, _ in self._runs(key, origin, whole):
                box = Piece((*layer, run.row, *begin), (*(1,) * depth, run.rows, *whole[depth + 1 :]), None, ())
                if run.source is None:
                    yield box
                else:
                    name, within = sources[run.source]
                    yield box._replace(
                        source=name,
                        first=(*within, *_turned((run.first, *begin), turned)),
                        transposed=turned,
                        steps=(*(1,) * len(within), *_turned((run.step, *ones), turned)) if run.step > 1 else (),
                    )

    def _layers(self, key: str, offset: Box, shape: Box) -> Iterator[tuple[tuple[int, ...], list[Source]]]:
        """(index into the box, sources) of each position that the box touches on the stacked axes."""
        rule = self._rules[key]
        for index in itertools.product(*map(range, shape[: len(rule.stack)])):
            position = {name: first + i for name, first, i in zip(rule.stack, offset, index, strict=False)}
            yield (
                index,
                [
                    Source(source.name.format_map(position), tuple(position[axis] for axis in source.within))
                    for source in rule.sources
                ],
            )

    def _window(self, key: str, source: Source, run: Run, columns: tuple[slice, ...]) -> np.ndarray:
        """What a run takes of a source, rows first; a window on the file where that has it as it is."""
        transposed = self._rules[key].operation.transposed
        window = self.store.part(source.name, (*source.within, *_turned((run.taken, *columns), transposed)))
        return window.T if transposed else window

    def _runs(self, key: str, offset: Box, shape: Box) -> Iterator[tuple[Run, tuple[slice, ...]]]:
        """The runs of rows that one layer of the box is made of, with its columns."""
        depth = len(self._rules[key].stack)
        segments, starts = self._maps[key], self._starts[key]
        columns = tuple(slice(o, o + s) for o, s in zip(offset[depth + 1 :], shape[depth + 1 :], strict=True))
        row, end = offset[depth], offset[depth] + shape[depth]
        number = bisect_right(starts, row) - 1
        while row < end:
            segment, skipped = segments[number], row - starts[number]
            rows = min(segment.rows - skipped, end - row)
            yield (
                Run(row - offset[depth], segment.source, segment.first + skipped * segment.step, rows, segment.step),
                columns,
            )
            row += rows
            number += 1

    def _check_box(self, key: str, offset: Box, shape: Box) -> None:
        whole = self.tensors[key].shape
        if len(offset) != len(whole) or len(shape) != len(whole):
            raise ValueError(f"{key} has shape {whole}; box at {offset} of shape {shape} has other axes")
        if any(o < 0 or o + s > w for o, s, w in zip(offset, shape, whole, strict=True)):
            raise ValueError(f"box at {offset} of shape {shape} leaves {key} of shape {whole}")

    def _spec(self, rule: Rule) -> TensorSpec:
        """Global shape and the dtype of all the tensors a Megatron tensor is made of."""
        names = [name for source in rule.sources for name in source.names(self._sizes)]
        dtypes = {self.store.dtype(name): name for name in reversed(names)}
        if len(dtypes) > 1:
            self.mixed[rule.megatron] = dtypes
        return TensorSpec(rule.shape(self._sizes), WIDEST if len(dtypes) > 1 else next(iter(dtypes)))


def _turned(box: tuple[T, ...], turned: bool) -> tuple[T, ...]:
    return box[::-1] if turned else box


def hf_tensors(
    family: Family, arguments: MegatronArguments, dtypes: Mapping[str, str], form: str | None = None
) -> dict[str, TensorSpec]:
    """What a Hugging Face folder of this model holds, given the dtype of each Megatron tensor.

    `form` is one of the family's, the first if None.
    """
    arguments = family.as_stored(arguments, dtypes)
    named = sizes(arguments, arguments.vocab_size)
    specs = {}
    for rule in family.rules_for(arguments, form):
        for name, shape in hf_shapes([rule], named).items():
            specs[name] = TensorSpec(shape, dtypes[rule.megatron])
    specs |= {copy: specs[name] for copy, name in family.copies_for(arguments).items()}
    return dict(sorted(specs.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key: embedding, then layers by number, then the rest."""
    first = 0 if "embed" in name else 1 if ".layers." in name else 2
    return [(first, 0, "")] + [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def _check_padding(vocab_size: int, padded: int) -> None:
    if padded < vocab_size:
        raise UserError(
            f"the Megatron embedding has {padded} rows, the vocabulary of config.json {vocab_size}.",
            "Checkpoint and config.json are of different models.",
        )
