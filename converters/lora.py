"""LoRA under PEFT's names and under Megatron's: which tensor of an adapter is which, from the rules of the weights.

PEFT gives every linear layer of the Hugging Face model its own factors, `q_proj.lora_A.weight` [r, in] and
`q_proj.lora_B.weight` [out, r]. Megatron has one layer for q, k and v, and one for gate and up. Its factors can be

    apart   linear_qkv.adapter.adapter_q.linear_in.weight    what PEFT has, one to one
    fused   linear_qkv.adapter.linear_in.weight              one `linear_in` that q, k and v share

(Megatron-Bridge's CanonicalLoRA and LoRA, whose names these are). A layer that is one in both has the second name.
What is fused is read as factors of q, k and v with equal `lora_A`; to fuse factors with different ones, their ranks
are put beside each other, with zeros in `linear_out` where a rank has no part in a row.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from converters.config_table import MegatronArguments
from converters.expert_lora import of_expert
from converters.family import Family, sizes
from converters.rules import CONCATENATE, DECODER_LAYERS, INTERLEAVE_GATED, INTERLEAVE_GROUPS, Operation, Rule, Segment
from converters.space import Box, Placement, Stored
from converters.tensors import TensorSpec

WEIGHT = ".weight"
BASE = "base_model.model."
"""How PEFT's names begin; the name in the model follows."""


class Factor(NamedTuple):
    """One of the tensors that an adapted layer has."""

    peft: str
    """What takes the place of `.weight` in its name."""
    megatron: str
    has_rank: bool
    """Whether an axis of it is LoRA's rank; the other is the layer's input or output."""
    is_input: bool = False
    """It belongs to the input of the layer: not to its rows, which differ in order between the two."""

    def shape(self, matrix: Box, rank: int) -> Box:
        """Of the factor of a layer whose weight is `matrix`, [out, in]."""
        rows, columns = matrix
        if self.is_input:
            return rank, columns
        return (rows, rank) if self.has_rank else (rows,)

    def rank_of(self, shape: Box) -> int:
        """LoRA's rank, by the shape of the factor; 0 where it has no such axis."""
        if not self.has_rank:
            return 0
        return shape[-2] if self.is_input else shape[-1]


LINEAR_IN = Factor(".lora_A.weight", "linear_in.weight", True, is_input=True)
LINEAR_OUT = Factor(".lora_B.weight", "linear_out.weight", True)
MAGNITUDE = Factor(".lora_magnitude_vector", "weight_magnitude", False)
"""DoRA's: the length that each row of the weight has."""
FACTORS = (LINEAR_IN, LINEAR_OUT, Factor(".lora_B.bias", "linear_out.bias", False), MAGNITUDE)

PARTS: dict[Operation, tuple[str, ...]] = {
    INTERLEAVE_GROUPS: ("adapter_q.", "adapter_k.", "adapter_v."),
    INTERLEAVE_GATED: ("adapter_q.", "adapter_k.", "adapter_v."),
    CONCATENATE: ("adapter_gate.", "adapter_up."),
}
"""Megatron's names of what it has fused."""


class Site(NamedTuple):
    """A weight of the Hugging Face model that can have an adapter."""

    rule: Rule
    """Of its layer alone."""
    number: int
    """Which of the rule's sources it is."""
    position: Box
    """On the axes of the Megatron tensor that are stacked: experts."""

    @property
    def within(self) -> str | None:
        """The axis of the weight itself that is stacked: experts in one tensor."""
        return next(iter(self.rule.sources[self.number].within), None)


Members = dict[tuple[int, Box], Stored]
"""(source of a rule, position on the stacked axes) → the tensor of a PEFT file."""


class Entry(NamedTuple):
    """What a Megatron tensor of an adapter holds."""

    rule: Rule
    factor: Factor | None
    """None: a weight that was trained itself, whole."""
    numbers: tuple[int, ...]
    """The sources of the rule that it is of."""

    @property
    def fused(self) -> bool:
        return len(self.numbers) > 1


class Adaptable:
    """The layers of one model that can have adapters, with every layer's tensors under keys of their own.

    Args:
        family: whose rules apply.
        arguments: of the model.
        padded_vocab_size: rows of the Megatron embedding and output layer.
        form: in which the adapter's Hugging Face model has its tensors; one of the family's, None: the first.
    """

    def __init__(
        self, family: Family, arguments: MegatronArguments, padded_vocab_size: int, form: str | None = None
    ) -> None:
        self.sizes = sizes(arguments, padded_vocab_size)
        self.layers = arguments.num_layers
        self.homogeneous = arguments.homogeneous
        self._rules = [one for rule in family.rules_for(arguments, form) for one in self._by_layer(rule)]
        self.sites: dict[str, list[Site]] = defaultdict(list)
        """Hugging Face name of a weight → where it is in Megatron: in one tensor, or in parts of several."""
        for rule in self._rules:
            for name, site in self._sites(rule):
                self.sites[name].append(site)
        self.entries = dict(entry for rule in self._rules for entry in self._entries(rule))
        """Megatron key → what it holds."""

    def _by_layer(self, rule: Rule) -> Iterator[Rule]:
        stacked = rule.megatron.startswith(DECODER_LAYERS) and "layer" in rule.stack
        yield from (rule.apart().at(layer=layer) for layer in range(self.layers)) if stacked else (rule,)

    def _sites(self, rule: Rule) -> Iterator[tuple[str, Site]]:
        for position in self._tensors(rule):
            where = dict(zip(rule.stack, position, strict=False))
            for number, source in enumerate(rule.sources):
                yield source.name.format_map(where), Site(rule, number, position)

    def _tensors(self, rule: Rule) -> list[Box]:
        """Positions on the stacked axes of the Megatron tensor for which the PEFT file has a tensor each."""
        apart = rule.stack[: len(rule.stack) - len(rule.sources[0].within)]
        return [*itertools.product(*(range(self.sizes[axis]) for axis in apart))]

    def _entries(self, rule: Rule) -> Iterator[tuple[str, Entry]]:
        every = tuple(range(len(rule.sources)))
        if len(every) == 1 and not rule.stack:
            yield rule.megatron, Entry(rule, None, every)
        if not is_linear(rule) or rule.operation.partial:
            return
        for factor in FACTORS:
            if len(every) > 1:
                yield from ((key_of(rule, factor, (number,)), Entry(rule, factor, (number,))) for number in every)
            if factor in (LINEAR_IN, LINEAR_OUT) or (len(every) == 1 and not rule.sources[0].within):
                yield key_of(rule, factor, every), Entry(rule, factor, every)

    def parse(self, name: str) -> tuple[Site, Factor | None] | None:
        """What a tensor of a PEFT file is; None: nothing that Megatron has a place for."""
        own = name.removeprefix(BASE)
        for factor in FACTORS:
            layer = own.removesuffix(factor.peft)
            if own.endswith(factor.peft) and (site := self._only(layer + WEIGHT) or self._only(layer)):
                key = key_of(site.rule, factor, (site.number,)) if is_linear(site.rule) else ""
                return (site, factor) if key in self.entries else None
        whole = self._only(own)
        return (whole, None) if whole is not None and whole.rule.megatron in self.entries else None

    def _only(self, name: str) -> Site | None:
        sites = self.sites.get(name, [])
        return sites[0] if len(sites) == 1 else None  # Megatron has no place for factors of what it has in parts

    def place(self, name: str) -> tuple[Site, Factor | None]:
        """The same for a name that Megatron has a place for."""
        found = self.parse(name)
        assert found is not None, name
        return found

    def matrix(self, site: Site) -> Box:
        """Shape of the weight, [out, in] of a linear layer."""
        return site.rule.matrix(site.rule.sources[site.number], self.sizes)

    def together(self, site: Site) -> int:
        """Experts whose factors are in one tensor of a PEFT file."""
        return self.sizes[site.within] if site.within else 1

    def positions(self, key: str) -> list[Box]:
        """Of the PEFT tensors that are in the Megatron tensor `key`: one for each expert, or the empty one."""
        return self._tensors(self.entries[key].rule)

    def names(self, key: str, spec: TensorSpec) -> Iterator[tuple[str, tuple[int, Box], TensorSpec]]:
        """PEFT's name, (source of the rule, position) and shape of everything in the Megatron tensor `key`."""
        rule, factor, numbers = self.entries[key]
        for position in self.positions(key):
            where = dict(zip(rule.stack, position, strict=False))
            for number in numbers:
                source = rule.sources[number]
                name = source.name.format_map(where)
                shape = self.matrix(Site(rule, number, position))
                if factor is not None:
                    together = math.prod(self.sizes[axis] for axis in source.within)
                    shape = factor.shape(shape, factor.rank_of(spec.shape) * together)
                    name = name.removesuffix(WEIGHT) + factor.peft
                yield BASE + name, (number, position), TensorSpec(shape, spec.dtype)

    def assembled(self, key: str, members: Members, expand: bool = False) -> Stored:
        """The Megatron tensor `key` as placements of the tensors of a PEFT file.

        Args:
            key: one of `entries`.
            members: (source of the rule, position on the stacked axes) → tensor. Of what is fused some may be absent.
            expand: put the ranks of what is fused beside each other; else they are the same and shared.
        """
        entry = self.entries[key]
        axes = [self.sizes[axis] for axis in entry.rule.stack]
        whole: list[Stored] = []
        for position in itertools.product(*map(range, axes)):
            parts = [self._part(entry, members, number, position) for number in range(len(entry.rule.sources))]
            whole.append(_stacked(self._one(entry, parts, expand), position))
        spec = whole[0].spec
        return Stored(
            TensorSpec((*axes, *spec.shape[len(axes) :]), spec.dtype),
            [placement for one in whole for placement in one.placements],
            [placement for one in whole for placement in one.again],
        )

    def _part(self, entry: Entry, members: Members, number: int, position: Box) -> Stored | None:
        """What the PEFT file has of one source, at one position."""
        within = entry.rule.sources[number].within
        if not within:
            return members.get((number, position))
        (expert,) = position[-len(within) :]
        whole = members[number, position[: -len(within)]]
        assert entry.factor is not None, "weights of experts are not trained whole"
        return of_expert(whole, expert, self.sizes[within[0]], entry.factor.is_input)

    def _one(self, entry: Entry, parts: Sequence[Stored | None], expand: bool) -> Stored:
        """What one position on the stacked axes has."""
        present = [part for part in parts if part is not None]
        is_input = entry.factor is not None and entry.factor.is_input
        if is_input and entry.fused:
            again = [] if expand else [placement for other in present[1:] for placement in other.placements]
            first = _concatenated(present) if expand else present[0]
            return Stored(first.spec, first.placements, again)
        if is_input or not (entry.fused or len(parts) == 1):
            return present[0]
        return _rows(parts, entry.rule.segments(self.sizes), expand)


def _stacked(stored: Stored, position: Box) -> Stored:
    """The tensor at a position on leading axes that it does not have itself."""

    def shifted(one: Placement) -> Placement:
        return one._replace(
            offset=(*position, *one.offset),
            shape=(*(1,) * len(position), *one.shape),
            strides=(*(0,) * len(position), *one.strides),
        )

    spec = TensorSpec((*(1,) * len(position), *stored.spec.shape), stored.spec.dtype)
    return Stored(spec, [shifted(one) for one in stored.placements], [shifted(one) for one in stored.again])


def _concatenated(parts: Sequence[Stored]) -> Stored:
    starts = [*itertools.accumulate((part.spec.shape[0] for part in parts), initial=0)]
    placements = [
        one._replace(offset=(one.offset[0] + start, *one.offset[1:]))
        for part, start in zip(parts, starts, strict=False)
        for one in part.placements
    ]
    return Stored(TensorSpec((starts[-1], *parts[0].spec.shape[1:]), parts[0].spec.dtype), placements)


def _rows(parts: Sequence[Stored | None], segments: Sequence[Segment], expand: bool) -> Stored:
    """Rows of several tensors in the order of `segments`; zeros for those of a tensor that is not there.

    Where ranks are put beside each other, a part has columns of its own and zeros in those of the others.
    """
    widths = [part.spec.shape[1] if part and expand else 0 for part in parts]
    starts = [*itertools.accumulate(widths, initial=0)]
    spec = next(part.spec for part in parts if part is not None)
    columns = (starts[-1],) if expand else spec.shape[1:]
    placements, row = [], 0
    for segment in segments:
        part = None if segment.source is None else parts[segment.source]
        first = starts[segment.source or 0] if expand else 0
        if part is None:
            placements.append(_zeros((row, *(0,) * len(columns)), (segment.rows, *columns)))
        else:
            (whole,) = part.placements
            offset = (row, first, *(0,) * len(columns))[: 1 + len(columns)]
            begin = whole.begin + segment.first * whole.strides[0]
            shape, strides = (segment.rows, *whole.shape[1:]), (whole.strides[0] * segment.step, *whole.strides[1:])
            placements.append(whole._replace(offset=offset, shape=shape, begin=begin, strides=strides))
            if expand:
                last = first + whole.shape[1]
                beside = [(0, first), (last, columns[0] - last)]
                placements += [_zeros((row, at), (segment.rows, width)) for at, width in beside if width]
        row += segment.rows
    return Stored(TensorSpec((row, *columns), spec.dtype), placements)


def _zeros(offset: Box, shape: Box) -> Placement:
    return Placement(offset, shape, None, 0, (0,) * len(shape))


def is_linear(rule: Rule) -> bool:
    """Whether the rule's weight is that of a linear layer, which can have an adapter."""
    is_matrix = len(rule.sources[0].dimensions) - len(rule.sources[0].within) == 2
    return is_matrix and rule.megatron.endswith(WEIGHT) and "embedding" not in rule.megatron


def key_of(rule: Rule, factor: Factor, numbers: tuple[int, ...]) -> str:
    """Megatron's key of a factor of the sources `numbers` of `rule`: of one, or of all fused."""
    part = PARTS[rule.operation][numbers[0]] if len(numbers) < len(rule.sources) else ""
    return f"{rule.megatron.removesuffix(WEIGHT)}.adapter.{part}{factor.megatron}"
