"""How one Megatron tensor is made of Hugging Face tensors: an ordered list of row segments.

A rule is a *row map*. The Megatron tensor of one layer is, along its first axis, a list of segments,
each a run of rows of one source tensor or a run of zeros; the other axes are untouched. Both
directions read the same list, so the way back cannot drift from the way there:

    linear_qkv = [q rows of group 0 | k rows of group 0 | v rows of group 0 | q rows of group 1 | …]

No arithmetic and no dtype: rows are bytes. The operations are a closed set of functions from sizes to
segments; a rule names one of them, and is otherwise data.
"""

import dataclasses
import itertools
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Sizes = Mapping[str, int]
"""Named dimensions of one model: `hidden`, `query`, `key_value`, `vocab`, `padded_vocab`, `layer`, …"""

Layers = Literal["all", "attention", "linear attention", "mamba", "dense", "moe"]
"""Which of a model's layers: all of them, those that mix tokens in this way, or those with this kind of MLP."""

DECODER_LAYERS = "decoder.layers."
"""How the Megatron key of a layer's tensor begins where all layers are stacked."""


class Segment(NamedTuple):
    """`rows` rows of source number `source` (None: zeros), every `step`-th from row `first` on."""

    source: int | None
    first: int
    rows: int
    step: int = 1


MTP_LAYERS = "mtp.layers."
"""How the key of a tensor begins that belongs to a layer which predicts further tokens."""


@dataclass(frozen=True)
class Operation:
    """A member of the closed set: row counts of the sources and sizes of the model → segments."""

    name: str
    segments: Callable[[Sequence[int], Sizes], list[Segment]]
    transposed: bool = False
    """The sources have rows and columns the other way round."""
    partial: bool = False
    """It takes a part of its source; other rules take the others (`check_parts`)."""


def _concatenate(rows: Sequence[int], sizes: Sizes) -> list[Segment]:
    """The sources one after another."""
    return [Segment(source, 0, count) for source, count in enumerate(rows)]


def _interleave_groups(rows: Sequence[int], sizes: Sizes) -> list[Segment]:
    """q, k, v → for each key-value group: its query heads, its key head, its value head."""
    groups = sizes["group"]
    return [
        Segment(source, group * (count // groups), count // groups)
        for group in range(groups)
        for source, count in enumerate(rows)
    ]


def _interleave_one(rows: Sequence[int], sizes: Sizes) -> list[Segment]:
    """The same where q, k and v lie one after another in one source."""
    parts = (sizes["query"], sizes["key_value"], sizes["key_value"])
    begins = (0, parts[0], parts[0] + parts[1])
    return [
        Segment(0, begins[segment.source or 0] + segment.first, segment.rows)
        for segment in _interleave_groups(parts, sizes)
    ]


def _interleave_gated(rows: Sequence[int], sizes: Sizes) -> list[Segment]:
    """The same where each query head has its output gate behind it: a group's query heads, gates, key, value."""
    groups, head = sizes["group"], sizes["head"]
    queries = sizes["heads"] // groups
    return [
        segment
        for group in range(groups)
        for segment in (
            *(
                Segment(0, (2 * (group * queries + query) + gate) * head, head)
                for gate in range(2)
                for query in range(queries)
            ),
            Segment(1, group * head, head),
            Segment(2, group * head, head),
        )
    ]


def _pad_vocabulary(rows: Sequence[int], sizes: Sizes) -> list[Segment]:
    """The source, then zero rows up to the padded vocabulary."""
    return [Segment(0, 0, rows[0]), Segment(None, 0, sizes["padded_vocab"] - rows[0])]


def _de_interleave(rows: Sequence[int], sizes: Sizes) -> list[Segment]:
    """Gate and up, whose rows take turns in the source, one after the other."""
    return [Segment(0, 0, rows[0] // 2, step=2), Segment(0, 1, rows[0] // 2, step=2)]


COPY = Operation("copy", _concatenate)
CONCATENATE = Operation("concatenate", _concatenate)
INTERLEAVE_GROUPS = Operation("grouped-query interleave", _interleave_groups)
INTERLEAVE_GATED = Operation("grouped-query interleave with output gates", _interleave_gated)
INTERLEAVE_ONE = Operation("grouped-query interleave of one tensor", _interleave_one)
PAD_VOCABULARY = Operation("pad vocabulary", _pad_vocabulary)
DE_INTERLEAVE = Operation("de-interleave", _de_interleave)
TRANSPOSE = Operation("transpose", _concatenate, transposed=True)
TRANSPOSE_DE_INTERLEAVE = Operation("transpose and de-interleave", _de_interleave, transposed=True)


def take(number: int, lengths: Sequence[str], blocks: str = "one") -> Operation:
    """Of each of the source's equal `blocks` part `number`; `lengths` are the parts', of all blocks together."""

    def segments(rows: Sequence[int], sizes: Sizes) -> list[Segment]:
        parts = [sizes[length] // sizes[blocks] for length in lengths]
        return [Segment(0, block * sum(parts) + sum(parts[:number]), parts[number]) for block in range(sizes[blocks])]

    return Operation("take a part", segments, partial=True)


@dataclass(frozen=True)
class HfTensor:
    """A Hugging Face tensor by its name (with `{layer}` where it is one of many) and named dimensions.

    Leading dimensions in braces, such as `{expert}`, hold what another file has as tensors of their own.
    """

    name: str
    dimensions: tuple[str, ...]

    @property
    def within(self) -> tuple[str, ...]:
        """The dimensions in braces."""
        return _placeholders("".join(self.dimensions))

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Of one of them."""
        return tuple(sizes[dimension.strip("{}")] for dimension in self.dimensions)

    @property
    def first_name(self) -> str:
        """The first name it stands for."""
        return self.name.format_map(dict.fromkeys(_placeholders(self.name), 0))

    def names(self, sizes: Sizes) -> list[str]:
        """Every name it stands for: one for each layer."""
        fields = _placeholders(self.name)
        positions = itertools.product(*(range(sizes[field]) for field in fields))
        return [self.name.format_map(dict(zip(fields, position, strict=True))) for position in positions]


def hf(name: str, *dimensions: str) -> HfTensor:
    """An `HfTensor`, short enough for tables."""
    return HfTensor(name, dimensions)


@dataclass(frozen=True)
class Rule:
    """One Megatron tensor, for all layers at once."""

    megatron: str
    """Key in a `torch_dist` checkpoint, in TransformerEngine's spelling."""

    sources: tuple[HfTensor, ...]
    operation: Operation = COPY
    when: str | None = None
    """Name of the Megatron argument that must be true for the tensor to exist. None: always there."""

    fragments: int = 1
    """Equal row blocks that megatron-core stores apart: 2 for gate and up. More do not change the tensor."""

    layers: Layers = "all"
    """Of which layers, where the model's layers are not all of one kind (`MegatronArguments.kinds`)."""

    form: str | None = None
    """Of several ways in which folders hold the same tensors, the one this rule is for. None: the same in all."""

    keeps_dtype: bool = False
    """Whether the tensor stays as it is stored when the weights are cast."""

    @property
    def stack(self) -> tuple[str, ...]:
        """Placeholders of the sources that become leading axes of the Megatron tensor: `("layer", "expert")`."""
        own, source = _placeholders(self.megatron), self.sources[0]
        return tuple(name for name in (*_placeholders(source.name), *source.within) if name not in own)

    @property
    def whole(self) -> str:
        """Key of the tensor that a rank has in memory, which may be several parts, in the order of their rules."""
        return self.megatron.rpartition(".")[0] if self.operation.partial else self.megatron

    def apart(self) -> "Rule":
        """The rule whose Megatron tensors are not stacked over layers, but have the layer in their key."""
        return dataclasses.replace(self, megatron=self.megatron.replace(DECODER_LAYERS, DECODER_LAYERS + "{layer}."))

    def at(self, **position: int) -> "Rule":
        """The rule of one position, such as a layer; other placeholders stay."""
        names = {name for tensor in (self.megatron, self.sources[0].name) for name in _placeholders(tensor)}
        fill = {name: position.get(name, "{" + name + "}") for name in names}
        return dataclasses.replace(
            self,
            megatron=self.megatron.format_map(fill),
            sources=tuple(HfTensor(source.name.format_map(fill), source.dimensions) for source in self.sources),
        )

    def matrix(self, source: HfTensor, sizes: Sizes) -> tuple[int, ...]:
        """Shape of what the row map sees of a source: without the axes that are stacked, rows first."""
        shape = source.shape(sizes)[len(source.within) :]
        return shape[::-1] if self.operation.transposed else shape

    def segments(self, sizes: Sizes) -> list[Segment]:
        """The row map of one layer, without empty segments.

        Raises:
            ValueError: it does not use every source row exactly once, unless it takes a part (a fault of the rule).
        """
        rows = [self.matrix(source, sizes)[0] for source in self.sources]
        segments = [segment for segment in self.operation.segments(rows, sizes) if segment.rows]
        if not self.operation.partial:
            inverse(segments, rows)
        return segments

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Of the whole Megatron tensor: the axes that are stacked, rows, the other axes."""
        rows = sum(segment.rows for segment in self.segments(sizes))
        return (*(sizes[name] for name in self.stack), rows, *self.matrix(self.sources[0], sizes)[1:])


def check_parts(rules: Iterable[Rule], sizes: Sizes) -> None:
    """Whether rules that take parts of a tensor take all of it together, each row once.

    Raises:
        ValueError: they do not (a fault of the rules).
    """
    taken: dict[HfTensor, list[Segment]] = defaultdict(list)
    for rule in rules:
        if rule.operation.partial:
            taken[rule.sources[0]] += rule.segments(sizes)
    for source, segments in taken.items():
        inverse(segments, [source.shape(sizes)[0]])


class Move(NamedTuple):
    """`rows` rows from row `target` of the Megatron tensor belong at row `first` of the source."""

    target: int
    first: int
    rows: int


def inverse(segments: Sequence[Segment], rows: Sequence[int]) -> list[list[Move]]:
    """For each source the moves that rebuild it from the Megatron tensor, in its own row order.

    Raises:
        ValueError: a source row is used twice or not at all, so there is no way back.
    """
    moves: list[list[Move]] = [[] for _ in rows]
    target = 0
    for segment in segments:
        if segment.rows < 0:
            raise ValueError(f"segment {segment} has a negative length")
        if segment.source is not None and segment.step == 1:
            moves[segment.source].append(Move(target, segment.first, segment.rows))
        elif segment.source is not None:
            moves[segment.source] += [
                Move(target + row, segment.first + row * segment.step, 1) for row in range(segment.rows)
            ]
        target += segment.rows
    for source, (total, own) in enumerate(zip(rows, moves, strict=True)):
        own.sort(key=lambda move: move.first)
        expected = 0
        for move in own:
            if move.first != expected:
                raise ValueError(f"row {min(expected, move.first)} of source {source} is used twice or never")
            expected += move.rows
        if expected != total:
            raise ValueError(f"{expected} of the {total} rows of source {source} are used")
    return moves


def _placeholders(name: str) -> tuple[str, ...]:
    return tuple(field for _, field, _, _ in string.Formatter().parse(name) if field)
