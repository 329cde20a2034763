"""A Hugging Face folder seen as Megatron tensors.

`MegatronView` answers for any box (offset, shape) of any Megatron tensor which bytes of which Hugging
Face tensors it is, and reads or writes them. Conversion asks for whole layers; a training rank asks
for its tensor-parallel slice of its pipeline stage's layers; both get it from the same rules.

Every tensor of the store is accounted for before the first byte moves: what no rule wants, and what a
rule wants and the store lacks, ends with its name.
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from converters.config_table import Config, MegatronArguments
from converters.families._common import EMBEDDING, OUTPUT
from converters.family import Family, sizes
from converters.rules import HfTensor, Rule
from converters.stores.safetensors import SafetensorsFolder
from converters.tensors import CARRIER, WEIGHT_DTYPES, TensorSpec
from swift_mega.base.errors import UserError

Box = tuple[int, ...]


class Run(NamedTuple):
    """Consecutive rows that are consecutive on both sides: of the box, and of one tensor (None: zeros)."""

    row: int
    source: int | None
    first: int
    rows: int


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
        self.arguments: MegatronArguments = family.megatron_arguments(hf_config)
        self.store = store
        self.notes: list[str] = []
        """What was left out of the source, and why; for the user to read."""
        self._sizes = sizes(self.arguments, padded_vocab_size)
        _check_padding(self.arguments.vocab_size, padded_vocab_size)
        self._rules = {rule.megatron: rule for rule in family.rules_for(self.arguments)}
        self._maps = {key: rule.segments(self._sizes) for key, rule in self._rules.items()}
        self._starts = {
            key: list(itertools.accumulate((segment.rows for segment in segments), initial=0))
            for key, segments in self._maps.items()
        }
        self._account()
        self.tensors: dict[str, TensorSpec] = {key: self._spec(rule) for key, rule in self._rules.items()}
        """Megatron key → global shape, layer axis first where stacked, and dtype."""

    def rule(self, key: str) -> Rule:
        return self._rules[key]

    def read(self, key: str, offset: Box, shape: Box) -> np.ndarray:
        """The box `offset … offset+shape` of Megatron tensor `key`, in the dtype that carries its bits."""
        self._check_box(key, offset, shape)
        box = np.empty(shape, CARRIER[self.tensors[key].dtype])
        for layer, names in self._layers(key, offset, shape):
            for run, columns in self._runs(key, offset, shape):
                rows = box[layer][run.row : run.row + run.rows]
                if run.source is None:
                    rows[...] = 0
                else:
                    rows[...] = self.store.array(names[run.source])[run.first : run.first + run.rows][:, *columns]
        return box

    def write(self, key: str, offset: Box, array: np.ndarray) -> None:
        """Put a box back into the Hugging Face tensors. Padding rows have no place there and are dropped."""
        self._check_box(key, offset, array.shape)
        if array.dtype != CARRIER[self.tensors[key].dtype]:
            raise TypeError(f"{key} is {self.tensors[key].dtype}, got numpy {array.dtype}")
        for layer, names in self._layers(key, offset, array.shape):
            for run, columns in self._runs(key, offset, array.shape):
                if run.source is not None:
                    rows = array[layer][run.row : run.row + run.rows]
                    self.store.array(names[run.source])[run.first : run.first + run.rows][:, *columns] = rows

    def chunks(self, key: str) -> Iterator[tuple[Box, Box]]:
        """(offset, shape) of the boxes in which megatron-core stores `key` on one rank: a layer, or a part of it."""
        rule, spec = self._rules[key], self.tensors[key]
        depth = len(rule.stack)
        rows = spec.shape[depth] // rule.fragments
        shape = (1,) * depth + (rows, *spec.shape[depth + 1 :])
        for position in itertools.product(*map(range, spec.shape[:depth]), range(rule.fragments)):
            *layer, fragment = position
            yield (*layer, fragment * rows, *(0,) * (len(shape) - depth - 1)), shape

    def position(self, key: str, offset: Box) -> tuple[Path, int]:
        """File and byte of the first source tensor of the layer at `offset`: what to sort reads by."""
        depth = len(self._rules[key].stack)
        _, names = next(self._layers(key, offset, (1,) * depth))
        place = self.store.places[names[0]]
        return place.file, place.offset

    def _layers(self, key: str, offset: Box, shape: Box) -> Iterator[tuple[tuple[int, ...], list[str]]]:
        """(index into the box, names of the source tensors) of each layer the box touches."""
        rule = self._rules[key]
        for index in itertools.product(*map(range, shape[: len(rule.stack)])):
            position = {name: first + i for name, first, i in zip(rule.stack, offset, index, strict=False)}
            yield index, [source.name.format_map(position) for source in rule.sources]

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
            yield Run(row - offset[depth], segment.source, segment.first + skipped, rows), columns
            row += rows
            number += 1

    def _check_box(self, key: str, offset: Box, shape: Box) -> None:
        whole = self.tensors[key].shape
        if len(offset) != len(whole) or len(shape) != len(whole):
            raise ValueError(f"{key} has shape {whole}; box at {offset} of shape {shape} has other axes")
        if any(o < 0 or o + s > w for o, s, w in zip(offset, shape, whole, strict=True)):
            raise ValueError(f"box at {offset} of shape {shape} leaves {key} of shape {whole}")

    def _spec(self, rule: Rule) -> TensorSpec:
        """Global shape and the one dtype of all the tensors a Megatron tensor is made of."""
        first = rule.sources[0].shape(self._sizes)
        rows = sum(segment.rows for segment in self._maps[rule.megatron])
        stack = tuple(self._sizes[name] for name in rule.stack)
        names = [name for source in rule.sources for name in expand(source, self._sizes)]
        dtypes = {self.store.tensors[name].dtype: name for name in names}
        if len(dtypes) > 1:
            found = ", ".join(f"`{name}` is {dtype}" for dtype, name in sorted(dtypes.items()))
            raise UserError(
                f"`{rule.megatron}` is made of tensors of different dtypes: {found}.",
                "Cast the source to one dtype first (`model.to(dtype).save_pretrained(folder)`).",
            )
        return TensorSpec((*stack, rows, *first[1:]), next(iter(dtypes)))

    def _account(self) -> None:
        """Compare the store with what the rules want; note what may be left out, refuse the rest."""
        wanted = shapes(list(self._rules.values()), self._sizes)
        found = self.store.tensors
        extra = set(found) - set(wanted) - self._recomputable(set(found) - set(wanted))
        extra -= self._tied_copy(extra)
        missing = [name for name in wanted if name not in found]
        if missing or extra:
            raise UserError(
                f"{self.store.path} does not hold the tensors of {self.family.name} with this config.json: "
                + "; ".join(filter(None, (_listing("missing", missing), _listing("without a place", sorted(extra))))),
                "Are config.json and weights of the same model and complete? Nothing was converted.",
            )
        for name, shape in wanted.items():
            if found[name].shape != shape:
                raise UserError(
                    f"`{name}` has shape {list(found[name].shape)}, config.json means {list(shape)}.",
                    "Take config.json and weights from the same model.",
                )
            if found[name].dtype not in WEIGHT_DTYPES:
                raise UserError(
                    f"`{name}` is {found[name].dtype}; a weight is one of {', '.join(WEIGHT_DTYPES)}.",
                    "Take the unquantised model.",
                )

    def _recomputable(self, names: set[str]) -> set[str]:
        buffers = {name for pattern in self.family.recomputable for name in expand(HfTensor(pattern, ()), self._sizes)}
        if names & buffers:
            self.notes.append(
                f"left out {len(names & buffers)} buffers that the config determines, such as `{min(names & buffers)}`"
            )
        return names & buffers

    def _tied_copy(self, names: set[str]) -> set[str]:
        """An output layer stored beside the embedding it is tied to: dropped only if it has the same bytes."""
        embedding = next(rule for rule in self.family.rules if rule.megatron == EMBEDDING).sources[0].name
        output = next(rule for rule in self.family.rules if rule.megatron == OUTPUT).sources[0].name
        if (
            self.arguments.untie_embeddings_and_output_weights
            or output not in names
            or embedding not in self.store.tensors
        ):
            return set()
        if self.store.tensors[output] != self.store.tensors[embedding] or not _same_bytes(
            self.store.array(output), self.store.array(embedding)
        ):
            raise UserError(
                f"config.json ties `{output}` to `{embedding}`, but the file holds both and they differ.",
                "Set tie_word_embeddings to false in config.json if the model was trained untied.",
            )
        self.notes.append(f"left out `{output}`: tied, and byte for byte the same as `{embedding}`")
        return {output}


def expand(source: HfTensor, sizes: Mapping[str, int]) -> list[str]:
    """Every name a source stands for: one for each layer."""
    stack = Rule("", (source,)).stack
    positions = itertools.product(*(range(sizes[name]) for name in stack))
    return [source.name.format_map(dict(zip(stack, position, strict=True))) for position in positions]


def shapes(rules: list[Rule], sizes: Mapping[str, int]) -> dict[str, Box]:
    """Hugging Face name → shape for the tensors of `rules`, in the order of the model."""
    return {name: source.shape(sizes) for rule in rules for source in rule.sources for name in expand(source, sizes)}


def hf_tensors(family: Family, arguments: MegatronArguments, dtypes: Mapping[str, str]) -> dict[str, TensorSpec]:
    """What a Hugging Face folder of this model holds, given the dtype of each Megatron tensor."""
    named = sizes(arguments, arguments.vocab_size)
    specs = {}
    for rule in family.rules_for(arguments):
        for name, shape in shapes([rule], named).items():
            specs[name] = TensorSpec(shape, dtypes[rule.megatron])
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


def _same_bytes(one: np.ndarray, other: np.ndarray, rows: int = 4096) -> bool:
    """Equal, compared a few megabytes at a time."""
    blocks = range(0, len(one), rows)
    return all(one[first : first + rows].tobytes() == other[first : first + rows].tobytes() for first in blocks)


def _listing(what: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(f"`{name}`" for name in names[:8])
    return f"{what}: {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
