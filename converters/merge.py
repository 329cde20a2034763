"""A LoRA adapter merged into its base, of any format and layout: W + s·B·A, with DoRA each row brought to its length.

Nothing is merged here: a tensor of the base gets another way of being read, and is converted as any other. What is
computed is computed in float32 from what both files have, and rounded once. Neither file is changed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from converters.adapters import WEIGHTS, is_peft, open_tensors
from converters.expert_lora import of_expert
from converters.families._common import EMBEDDING
from converters.key_forms import canonical_part
from converters.lora import BASE, LINEAR_IN, LINEAR_OUT, MAGNITUDE, WEIGHT, Adaptable, Site
from converters.lora_config import CONFIG, LoraConfig
from converters.rules import Segment
from converters.source import Source
from converters.space import Box, LowRank, Merge, Placement, Stored, row_major, shared
from converters.tensors import CARRIER, TensorSpec
from swift_mega.base.errors import UserError

A, B, LENGTHS = LINEAR_IN.peft, LINEAR_OUT.peft, MAGNITUDE.peft
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
"""Of an embedding, whose rows are its inputs: its weight is the other way round."""
COPY = ".base_layer.weight"
"""PEFT may save the base's embedding besides."""

Where = tuple[str, Box]
"""Key of a tensor of the base, and position on its stacked axes."""


class _Layer(NamedTuple):
    """What a PEFT file has of one layer."""

    sites: list[Site]
    scale: float
    a: Stored
    b: Stored
    magnitude: Stored | None


class _Added(NamedTuple):
    """What is added to a tensor of the base at one position."""

    segments: list[Segment]
    """Its rows, as the rule for the adapter's layers has them."""
    of_source: dict[int, LowRank]
    """To the rows of a source of that rule."""


class _Rows(NamedTuple):
    """Rows of a tensor of the base at one position, and what is added to these."""

    offset: Box
    shape: Box
    added: LowRank | None


def merged(source: Source, folder: Path, dtype: str | None) -> Source:
    """The base with the adapter in it.

    Args:
        source: the base.
        folder: that PEFT has saved.
        dtype: of the weights that change. None: the base's.

    Raises:
        UserError: the adapter is of another model, or of a kind that cannot be merged.
    """
    if not is_peft(folder):
        raise UserError(
            f"{folder} has no {CONFIG}: it is no adapter as PEFT saves it.",
            "Give such a folder; `swift-mega convert ADAPTER FOLDER` makes one of a Megatron checkpoint.",
        )
    said = LoraConfig(folder)
    said.check_mergeable()
    tensors, form = open_tensors(folder, said, source.family)
    adaptable = Adaptable(source.family, source.arguments, source.space[EMBEDDING].spec.shape[0], form)
    names = {name: name.removeprefix(BASE) for name in tensors if not name.endswith(COPY)}
    notes = [f"left out `{name}`, PEFT's copy of what the base has" for name in tensors if name.endswith(COPY)]
    suffixes = {name: _suffix(own) for name, own in names.items()}
    layers: dict[str, dict[str, Stored]] = defaultdict(dict)
    whole: dict[Where, Stored] = {}
    for name, own in names.items():
        if suffixes[name]:
            layers[own.removesuffix(suffixes[name])][suffixes[name]] = tensors[name]
        else:
            where, stored = _whole(source, folder, adaptable, name, tensors[name])
            whole[where] = stored
    added: dict[Where, _Added] = {}
    for layer, factors in layers.items():
        for where, site, low_rank in _added(source, adaptable, _layer(folder, adaptable, said, layer, factors)):
            segments = site.rule.segments(adaptable.sizes)
            added.setdefault(where, _Added(segments, {})).of_source[site.number] = low_rank
    _check_tied(source, folder, said, {key for key, _ in (*added, *whole)})
    space = dict(source.space)
    for key in {key for key, _ in (*added, *whole)}:
        space[key] = _changed(source, key, added, whole, dtype or space[key].spec.dtype)
    return replace(source, space=space, notes=source.notes + notes)


def _check_tied(source: Source, folder: Path, said: LoraConfig, changed: set[str]) -> None:
    tied = not source.arguments.untie_embeddings_and_output_weights
    if tied and EMBEDDING in changed and not said.content.get("ensure_weight_tying"):
        raise UserError(
            f"{folder} changes the embedding, to which {source.path} ties its output layer; in training that layer did "
            "not change with it.",
            "No single matrix does the work of both: keep base and adapter apart, or train with ensure_weight_tying.",
        )


def _suffix(name: str) -> str:
    """How the name of a factor ends; empty for a whole weight."""
    return next((end for end in (A, B, LENGTHS, EMBEDDING_A, EMBEDDING_B) if name.endswith(end)), "")


def _whole(source: Source, folder: Path, adaptable: Adaptable, name: str, stored: Stored) -> tuple[Where, Stored]:
    """A weight that was trained itself, in the place of the base's."""
    found = adaptable.parse(name)
    if found is None or (where := _where(source, found[0])) is None:
        raise _misfit(source, folder, name)
    weight = adaptable.assembled(found[0].rule.megatron, {(0, ()): stored})
    if weight.spec.shape != source.space[where[0]].spec.shape[len(where[1]) :]:
        raise _misfit(source, folder, name)
    return where, weight


def _layer(folder: Path, adaptable: Adaptable, said: LoraConfig, name: str, own: Mapping[str, Stored]) -> _Layer:
    """The factors of the layer `name`, in the order of its weight's rows and columns."""
    sites = adaptable.sites.get(name + WEIGHT) or adaptable.sites.get(name) or []
    if EMBEDDING_A in own and EMBEDDING_B in own:
        own = {A: _turned(own[EMBEDDING_B]), B: _turned(own[EMBEDDING_A])}
    if not sites or not {A, B} <= set(own):
        raise UserError(
            f"{folder / WEIGHTS} has {', '.join(name + end for end in own)}, which is no layer of the base with both "
            "factors.",
            FIX,
        )
    a, b = own[A], own[B]
    rows, columns = adaptable.matrix(sites[0])
    if (a.spec.shape[1], b.spec.shape[0], a.spec.shape[0]) != (columns, rows, b.spec.shape[1]):
        raise UserError(
            f"{folder / WEIGHTS}: the factors of {name} are {list(b.spec.shape)} × {list(a.spec.shape)}, the base's "
            f"weight is {[rows, columns]}.",
            "The adapter is of another model than this base.",
        )
    together = adaptable.together(sites[0])
    said.check_rank(name, a.spec.shape[0], together)
    return _Layer(sites, said.scale(name, a.spec.shape[0] // together), a, b, own.get(LENGTHS))


def _added(source: Source, adaptable: Adaptable, layer: _Layer) -> Iterator[tuple[Where, Site, LowRank]]:
    """(tensor of the base, where in it the layer is, what is added to the rows of the layer)."""
    for site in layer.sites:
        where = _where(source, site)
        assert where is not None, "the base has every layer that its rules name"
        if site.within is None:
            yield where, site, LowRank(layer.a, layer.b, layer.scale, layer.magnitude)
            continue
        experts = adaptable.sizes[site.within]
        for expert in range(experts):
            a, b = (of_expert(one, expert, experts, one is layer.a) for one in (layer.a, layer.b))
            yield (where[0], (*where[1], expert)), site, LowRank(a, b, layer.scale, None)


def _where(source: Source, site: Site) -> Where | None:
    """Where the base has a weight; the layers of some are stacked."""
    part = canonical_part(site.rule.megatron, source.space)
    return None if part is None else (part.key, (*part.position, *site.position))


def _changed(
    source: Source,
    key: str,
    added: Mapping[Where, _Added],
    whole: Mapping[Where, Stored],
    dtype: str,
) -> Stored:
    """A tensor of the base, as it is read with the adapter in it."""
    base, depth = source.space[key], len(source.rules[key].stack)
    stack, own = base.spec.shape[:depth], base.spec.shape[depth:]
    rows: list[_Rows] = []
    placements: list[Placement] = []
    for position in product(*map(range, stack)):
        if (key, position) in whole:
            placements += _at(whole[key, position], (*position, *(0,) * len(own)), dtype)
        elif (key, position) in added:
            rows += _of_segments(added[key, position], own, position)
        else:
            rows.append(_Rows((*position, *(0,) * len(own)), (*(1,) * depth, *own), None))
    parts: dict[int, list[Placement]] = defaultdict(list)
    boxes = [Placement(box.offset, box.shape, None, number, ()) for number, box in enumerate(rows)]
    for one, box, offset, shape in shared(base.placements, boxes):
        begin = one.inside(offset) if one.file is not None else 0
        within = tuple(a - b for a, b in zip(offset, box.offset, strict=True))[depth:]
        parts[box.begin].append(
            one._replace(offset=within, shape=shape[depth:], begin=begin, strides=one.strides[depth:])
        )
    for number, run in enumerate(rows):
        weight = Stored(TensorSpec(run.shape[depth:], base.spec.dtype), parts[number])
        placements += _at(weight, run.offset, dtype, run.added)
    return Stored(TensorSpec(base.spec.shape, dtype), placements)


def _of_segments(added: _Added, own: Box, position: Box) -> Iterator[_Rows]:
    """The rows of one position: each run of a source's rows, with what is added to them."""
    row = 0
    for segment in added.segments:
        low_rank = added.of_source.get(segment.source) if segment.source is not None else None
        if low_rank is not None:
            magnitude = None if low_rank.magnitude is None else _taken(low_rank.magnitude, segment)
            low_rank = low_rank._replace(b=_taken(low_rank.b, segment), magnitude=magnitude)
        yield _Rows((*position, row, *(0,) * (len(own) - 1)), (*(1,) * len(position), segment.rows, *own[1:]), low_rank)
        row += segment.rows


def _taken(stored: Stored, segment: Segment) -> Stored:
    """The rows of a source that a segment takes."""
    (whole,) = stored.placements
    down, *right = whole.strides
    shape = (segment.rows, *stored.spec.shape[1:])
    begin = whole.begin + segment.first * down
    placement = Placement((0,) * len(shape), shape, whole.file, begin, (down * segment.step, *right))
    return Stored(TensorSpec(shape, stored.spec.dtype), [placement])


def _at(stored: Stored, offset: Box, dtype: str, added: LowRank | None = None) -> list[Placement]:
    """The placements of a box at `offset` of a larger tensor of `dtype`, in which `stored` lies, with `added` to it."""
    depth = len(offset) - len(stored.spec.shape)
    lead, shape = (1,) * depth, stored.spec.shape
    file = next((one.file for one in stored.placements if one.file is not None), None)
    if added is None and (file is None or stored.spec.dtype == dtype):  # padding is zeros in any dtype
        return [
            one._replace(
                offset=(*offset[:depth], *(a + b for a, b in zip(offset[depth:], one.offset, strict=True))),
                shape=(*lead, *one.shape),
                strides=(*(0,) * depth, *one.strides),
            )
            for one in stored.placements
        ]
    strides = (*(0,) * depth, *row_major(shape, CARRIER[dtype].itemsize))
    assert file is not None, "what is added to is in a file"
    return [Placement(offset, (*lead, *shape), file, 0, strides, Merge(stored, added, dtype))]


def _turned(stored: Stored) -> Stored:
    """A matrix with rows and columns the other way round."""
    (whole,) = stored.placements
    shape = stored.spec.shape[::-1]
    return Stored(TensorSpec(shape, stored.spec.dtype), [whole._replace(shape=shape, strides=whole.strides[::-1])])


def _misfit(source: Source, folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder / WEIGHTS} has `{name}`, for which {source.path} has no place of that shape.",
        f"{FIX} An output layer that is tied to the embedding cannot change alone.",
    )


FIX = "What can be merged is LoRA of linear layers, of the embedding and of experts, and whole weights."
