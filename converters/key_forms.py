"""The ways in which megatron-core names the same tensor in a checkpoint.

The layers of a homogeneous model are one tensor with a leading axis, `decoder.layers.mlp.linear_fc2.weight`; those
of any other are tensors of their own, `decoder.layers.3.mlp.linear_fc2.weight`, and so are all where the run asked
for it (`singleton_local_shards`, `non_homogeneous_layers`). Experts are an axis, or apart in the same way, and then
the two halves of a gated layer are too.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

from converters.space import Box, Placement, Space, Stored
from converters.tensors import TensorSpec
from swift_mega.base.errors import UserError


class Part(NamedTuple):
    """A tensor of a checkpoint as a box of a canonical one."""

    key: str
    position: Box
    """Position on the leading axes that the tensor of the checkpoint lacks."""
    half: int | None
    """0 or 1: one half of the first axis after them."""


LAYER = re.compile(r"(decoder\.layers\.)(\d+)\.(.+)")
"""The key of a tensor of one layer; without its number that of all layers' stacked."""

HALVES = {"_w": 0, "_v": 1}
"""Suffix of a gated layer's halves that are stored apart: gate, up."""


def canonical_part(native: str, wanted: Collection[str]) -> Part | None:
    """What `native` is of the canonical keys `wanted`; None: nothing of them."""
    half = HALVES.get(native[-2:]) if native.endswith((".weight_w", ".weight_v")) else None
    name = native[:-2] if half is not None else native
    if name in wanted:
        return Part(name, (), half)
    layer = LAYER.fullmatch(name)
    expert = re.fullmatch(r"(.+\.experts\.experts\.)(\d+)\.(.+)", name)
    both = layer and re.fullmatch(r"(.+\.experts\.experts\.)(\d+)\.(.+)", layer[1] + layer[3])
    for found, index in (
        (layer and layer[1] + layer[3], layer and (int(layer[2]),)),
        (expert and expert[1] + expert[3], expert and (int(expert[2]),)),
        (both and both[1] + both[3], layer and both and (int(layer[2]), int(both[2]))),
    ):
        if found in wanted and found and index:
            return Part(found, index, half)
    return None


def canonical_space(native: Mapping[str, Stored], parts: Mapping[str, Part]) -> Space:
    """The tensors of a checkpoint under canonical keys.

    Args:
        native: by the checkpoint's own keys.
        parts: what each of them is.
    """
    grouped: dict[str, list[tuple[Part, Stored]]] = defaultdict(list)
    for name, part in parts.items():
        grouped[part.key].append((part, native[name]))
    return {key: _joined(members) for key, members in grouped.items()}


def _joined(members: list[tuple[Part, Stored]]) -> Stored:
    first, stored = members[0]
    if len(dtypes := {one.spec.dtype for _, one in members}) > 1:
        raise UserError(
            f"the layers or experts of `{first.key}` are stored in different dtypes: {', '.join(sorted(dtypes))}.",
            "Save the checkpoint in one dtype: there is one tensor for all of them in Megatron's own keys.",
        )
    own = list(stored.spec.shape)
    if first.half is not None:
        own[0] *= 2
    leading = [max(part.position[axis] for part, _ in members) + 1 for axis in range(len(first.position))]
    placements = [
        Placement(
            (*part.position, *_shifted(placement.offset, (part.half or 0) * own[0] // 2)),
            (*(1,) * len(part.position), *placement.shape),
            placement.file,
            placement.begin,
            (*(0,) * len(part.position), *placement.strides),
        )
        for part, stored in members
        for placement in stored.placements
    ]
    return Stored(TensorSpec((*leading, *own), stored.spec.dtype), placements)


def _shifted(offset: Box, rows: int) -> Box:
    return (offset[0] + rows, *offset[1:]) if rows else offset
