"""One address space as the files of all ranks of an older Megatron checkpoint: the way back of `gather`."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from converters.config_table import MegatronArguments
from converters.families._common import EMBEDDING
from converters.family import sizes
from converters.plan import Target
from converters.ranks import Cut, Grid, Held, Rank, dealt_out, shard, stateful_modules
from converters.rules import Rule
from converters.space import Box, Placement, Stored, row_major
from converters.stores import legacy
from converters.tensors import CARRIER, TensorSpec


class _Part(NamedTuple):
    """A tensor of one rank, and the boxes that it is made of."""

    held: Held
    spec: TensorSpec
    cuts: list[Cut]


def scattered(
    folder: Path,
    tensors: Mapping[str, TensorSpec],
    rules: Mapping[str, Rule],
    arguments: MegatronArguments,
    grid: Grid,
    others: dict[str, Any],
) -> Target:
    """A checkpoint to be written with a file for each rank of `grid`.

    Args:
        tensors: canonical key → global shape, with the padded vocabulary, and dtype.
        others: what each file holds besides the weights.

    Raises:
        UserError: a tensor cannot be shared equally.
    """
    grid.check(arguments)
    parts: dict[tuple[Rank, int], dict[str, _Part]] = {
        (rank, virtual): {} for rank in grid.ranks for virtual in range(grid.virtual)
    }
    for held in dealt_out(rules, sizes(arguments, tensors[EMBEDDING].shape[0]), arguments, grid):
        experts = range(grid.expert) if held.expert is None else [held.expert]
        for tensor, expert in product(range(grid.tensor), experts):
            rank = Rank(tensor, held.stage, expert)
            shape, dtype = tensors[held.key]
            own, cuts = shard(held, shape[len(held.position) :], grid, rank, rules[held.key].fragments)
            parts[rank, held.virtual][held.name] = _Part(held, TensorSpec(own, dtype), cuts)
    target, begins = legacy.layout(folder, _state_dicts(parts, grid), grid, others)
    placements: dict[str, dict[Box, Placement]] = {key: {} for key in tensors}
    again: dict[str, list[Placement]] = defaultdict(list)
    for (rank, virtual), chunk in parts.items():
        for name, part in chunk.items():
            for placement in _placements(part, *begins[rank, virtual, name]):
                first = placements[part.held.key].setdefault(placement.offset, placement)
                if first is not placement:
                    again[part.held.key].append(placement)
    target.space.update(
        {key: Stored(spec, list(placements[key].values()), again[key]) for key, spec in tensors.items()}
    )
    return target


def _state_dicts(
    parts: Mapping[tuple[Rank, int], Mapping[str, _Part]], grid: Grid
) -> dict[Rank, list[dict[str, TensorSpec | None]]]:
    found: dict[Rank, list[dict[str, TensorSpec | None]]] = defaultdict(list)
    for (rank, virtual), chunk in parts.items():
        is_last = (rank.pipeline, virtual) == (grid.pipeline - 1, grid.virtual - 1)
        states = dict.fromkeys(stateful_modules(list(chunk), grid, is_last))
        found[rank].append({name: part.spec for name, part in chunk.items()} | states)
    return found


def _placements(part: _Part, file: Path, begin: int) -> list[Placement]:
    position = part.held.position
    strides = row_major(part.spec.shape, CARRIER[part.spec.dtype].itemsize)
    return [
        Placement(
            (*position, *cut.offset),
            (*(1,) * len(position), *cut.shape),
            file,
            begin + sum(first * stride for first, stride in zip(cut.within, strides, strict=True)),
            (*(0,) * len(position), *strides),
        )
        for cut in part.cuts
    ]
