"""One address space as the files of all ranks of an older Megatron checkpoint: the way back of `gather`."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
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
from swift_mega.base.errors import UserError


class _Part(NamedTuple):
    """A tensor of one rank, or some rows of it, and the boxes that it is made of."""

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
    parts: dict[tuple[Rank, int], dict[str, list[_Part]]] = {
        (rank, virtual): {} for rank in grid.ranks for virtual in range(grid.virtual)
    }
    for held in dealt_out(rules, sizes(arguments, tensors[EMBEDDING].shape[0]), arguments, grid):
        experts = range(grid.expert) if held.expert is None else [held.expert]
        for tensor, expert in product(range(grid.tensor), experts):
            rank = Rank(tensor, held.stage, expert)
            shape, dtype = tensors[held.key]
            own, cuts = shard(held, shape[len(held.position) :], grid, rank, rules[held.key].fragments)
            parts[rank, held.virtual].setdefault(held.name, []).append(_Part(held, TensorSpec(own, dtype), cuts))
    target, begins = legacy.layout(folder, _state_dicts(parts, grid), grid, others)
    placements: dict[str, dict[Box, Placement]] = {key: {} for key in tensors}
    again: dict[str, list[Placement]] = defaultdict(list)
    for (rank, virtual), chunk in parts.items():
        for name, own_parts in chunk.items():
            for key, placement in _placements(own_parts, *begins[rank, virtual, name]):
                first = placements[key].setdefault(placement.offset, placement)
                if first is not placement:
                    again[key].append(placement)
    target.space.update(
        {key: Stored(spec, list(placements[key].values()), again[key]) for key, spec in tensors.items()}
    )
    return target


def _state_dicts(
    parts: Mapping[tuple[Rank, int], Mapping[str, list[_Part]]], grid: Grid
) -> dict[Rank, list[dict[str, TensorSpec | None]]]:
    found: dict[Rank, list[dict[str, TensorSpec | None]]] = defaultdict(list)
    for (rank, virtual), chunk in parts.items():
        is_last = (rank.pipeline, virtual) == (grid.pipeline - 1, grid.virtual - 1)
        states = dict.fromkeys(stateful_modules(list(chunk), grid, is_last))
        found[rank].append({name: _joined(name, own) for name, own in chunk.items()} | states)
    return found


def _joined(name: str, parts: list[_Part]) -> TensorSpec:
    """The tensor that has the parts one below the other."""
    (rows, *columns), dtype = parts[0].spec
    for part in parts[1:]:
        if part.spec.dtype != dtype:
            raise UserError(
                f"`{name}` is one tensor of a rank, of which `{part.held.key}` is {part.spec.dtype} and "
                f"`{parts[0].held.key}` {dtype}.",
                "Cast to one dtype with --dtype.",
            )
        rows += part.spec.shape[0]
    return TensorSpec((rows, *columns), dtype)


def _placements(parts: list[_Part], file: Path, begin: int) -> Iterator[tuple[str, Placement]]:
    """(canonical key, placement) of each box of a rank's tensor."""
    for held, spec, cuts in parts:
        depth, strides = len(held.position), row_major(spec.shape, CARRIER[spec.dtype].itemsize)
        for cut in cuts:
            yield (
                held.key,
                Placement(
                    (*held.position, *cut.offset),
                    (*(1,) * depth, *cut.shape),
                    file,
                    begin + sum(first * stride for first, stride in zip(cut.within, strides, strict=True)),
                    (*(0,) * depth, *strides),
                ),
            )
        begin += spec.nbytes
