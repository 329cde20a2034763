"""A Megatron checkpoint written anew: other keys, another padding of the vocabulary, another dtype, nothing lost.

The optimizer's state comes along where it is stored by the names of the weights (`fully_reshardable`): its tensors
have the shapes of the weights, so what is done to these is done to them. Objects and `common.pt` stay as they are,
byte for byte, but for what they say about the form of the keys.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from converters import checkpoint
from converters.config_table import MegatronArguments
from converters.families._common import EMBEDDING, OUTPUT
from converters.key_forms import canonical_part, canonical_space
from converters.rules import DECODER_LAYERS, Rule
from converters.space import Box, Placement, Space, Stored
from converters.stores import torch_dist, torch_zip
from converters.stores.torch_dist import TorchDistCheckpoint
from converters.tensors import TensorSpec
from swift_mega.base.errors import UserError

Keys = Literal["stacked", "per-layer"]
"""Whether the layers of a homogeneous model are one tensor, or each its own."""

OPTIMIZER = re.compile(r"((?:chained_\d+\.)?optimizer\.state\.\w+\.)(.+)")
"""What stands before a weight's name in the key of its moments and its fp32 copy."""

CONTENT = {
    "stacked": {"non_homogeneous_layers": False, "singleton_local_shards": False},
    "per-layer": {"non_homogeneous_layers": True, "singleton_local_shards": False},
}
"""What `content_metadata` says of the form, by which megatron-core asks for the same keys when it loads."""


class Content(NamedTuple):
    """What a Megatron checkpoint is to hold."""

    space: Space
    """By the checkpoint's own keys: where everything comes from."""
    tensors: dict[str, TensorSpec]
    boxes: list[tuple[str, Box, Box]]
    """(key, offset, shape) of the chunks."""
    objects: dict[str, bytes]
    common: bytes | None
    """None: `common.pt` is among the objects, as megatron-core 0.19 has it."""
    others: list[tuple[str, bytes]]
    """Further small files."""


def relaid(
    stored: TorchDistCheckpoint,
    arguments: MegatronArguments,
    rules: Mapping[str, Rule],
    dtypes: Mapping[str, str],
    keys: Keys | None,
    rows: int,
) -> Content:
    """Everything that a checkpoint holds.

    Args:
        stored: the checkpoint.
        arguments: of its model.
        rules: of its model, by canonical key.
        dtypes: of the weights, by canonical key.
        keys: None: as they are.
        rows: of embedding and output layer.
    """
    native = {key: stored.stored(key) for key in stored.tensors}
    space = dict(native) if keys is None else _in_form(native, rules, keys)
    tensors = {key: TensorSpec(entry.spec.shape, _dtype(key, entry, rules, dtypes)) for key, entry in space.items()}
    for key in tensors:
        if weight_of(key) in (EMBEDDING, OUTPUT):
            tensors[key] = TensorSpec((rows, *tensors[key].shape[1:]), tensors[key].dtype)
    same = keys is None and all(tensors[key].shape == entry.spec.shape for key, entry in native.items())
    _check_changeable(stored, rules, same)
    objects = {key: stored.object(key) for key in stored.objects}
    common = None if torch_dist.COMMON_OBJECT in objects else (stored.folder / torch_dist.COMMON).read_bytes()
    if keys is not None and common is None:
        raise UserError(
            f"{stored.folder} says in an object, not in common.pt, which form its keys have.",
            "--keys cannot change that: leave it out, or give --weights-only.",
        )
    if keys is not None and common is not None:
        objects = {
            _renamed(key, keys, arguments.num_layers, arguments.num_moe_experts or 0): content
            for key, content in objects.items()
        }
        said = stored.common().get("content_metadata") or {}
        common = torch_zip.with_entry(common, "content_metadata", {**said, **CONTENT[keys]})
    return Content(space, tensors, list(_boxes(space, tensors)), objects, common, _others(stored.folder))


def weight_of(key: str) -> str:
    """The weight that a tensor of the optimizer belongs to; a weight is its own."""
    found = OPTIMIZER.fullmatch(key)
    return found[2] if found else key


def _check_changeable(stored: TorchDistCheckpoint, rules: Mapping[str, Rule], same: bool) -> None:
    unknown = [key for key in stored.tensors if canonical_part(weight_of(key), rules) is None]
    if unknown and not same:
        raise UserError(
            f"{stored.folder} holds optimizer state that is not stored by the names of the weights, such as "
            f"`{unknown[0]}`; it fits nothing but the keys and the padding that it was saved with.",
            "Save with --dist-ckpt-optim-fully-reshardable, or convert with --weights-only.",
        )


def _dtype(key: str, entry: Stored, rules: Mapping[str, Rule], dtypes: Mapping[str, str]) -> str:
    part = canonical_part(key, rules)
    return dtypes[part.key] if part else entry.spec.dtype


def _boxes(space: Space, tensors: Mapping[str, TensorSpec]) -> Iterator[tuple[str, Box, Box]]:
    """The chunks of the source; one chunk where the shape changes."""
    for key, spec in tensors.items():
        if spec.shape == space[key].spec.shape:
            yield from ((key, placement.offset, placement.shape) for placement in space[key].placements)
        else:
            yield key, (0,) * len(spec.shape), spec.shape


def _in_form(native: Space, rules: Mapping[str, Rule], keys: Keys) -> Space:
    """Weights and optimizer state under keys of this form; what is neither stays."""
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for key in native:
        weight = weight_of(key)
        kinds[key.removesuffix(weight)][weight] = key
    found: Space = {}
    for prefix, own in kinds.items():
        parts = {weight: part for weight in own if (part := canonical_part(weight, rules))}
        canonical = canonical_space({weight: native[own[weight]] for weight in parts}, parts)
        formed = canonical if keys == "stacked" else per_layer(canonical)
        found |= {prefix + key: entry for key, entry in formed.items()}
        found |= {key: native[key] for weight, key in own.items() if weight not in parts}
    return found


def check_form(keys: Keys | None, rules: Mapping[str, Rule]) -> None:
    """Raises:
    UserError: the layers are not of one kind, so they cannot be stacked.
    """
    if keys == "stacked" and any(key.startswith(DECODER_LAYERS) and not _is_stacked(key) for key in rules):
        raise UserError(
            "the layers of this model are not all of one kind, and megatron-core stores such layers apart.",
            "Leave out --keys.",
        )


def _is_stacked(key: str) -> bool:
    return key.startswith(DECODER_LAYERS) and not key.split(".")[2].isdigit()


def per_layer(space: Space) -> Space:
    """Tensors stacked over layers as one for each layer."""
    found: Space = {}
    for key, stored in space.items():
        if not _is_stacked(key):
            found[key] = stored
            continue
        placements: dict[int, list[Placement]] = defaultdict(list)
        for one in stored.placements:
            for number in range(one.shape[0]):
                begin = one.begin + number * one.strides[0]
                box = one._replace(offset=one.offset[1:], shape=one.shape[1:], begin=begin, strides=one.strides[1:])
                placements[one.offset[0] + number].append(box)
        layers, *shape = stored.spec.shape
        for layer in range(layers):
            name = key.replace(DECODER_LAYERS, f"{DECODER_LAYERS}{layer}.")
            found[name] = Stored(TensorSpec(tuple(shape), stored.spec.dtype), placements[layer])
    return found


def specs_per_layer(tensors: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The same for what is known of tensors."""
    found: dict[str, TensorSpec] = {}
    for key, spec in tensors.items():
        names = [key.replace(DECODER_LAYERS, f"{DECODER_LAYERS}{layer}.") for layer in range(spec.shape[0])]
        found |= dict.fromkeys(names, TensorSpec(spec.shape[1:], spec.dtype)) if _is_stacked(key) else {key: spec}
    return found


def boxes_per_layer(boxes: Iterable[tuple[str, Box, Box]]) -> Iterator[tuple[str, Box, Box]]:
    """Boxes of one layer of a stacked tensor as boxes of the layer's own."""
    for key, offset, shape in boxes:
        if _is_stacked(key):
            yield key.replace(DECODER_LAYERS, f"{DECODER_LAYERS}{offset[0]}."), offset[1:], shape[1:]
        else:
            yield key, offset, shape


_STATE = re.compile(
    r"(decoder\.layers\.)(?:(\d+)\.)?(.*?\.experts\.experts\.)?(?:(\d+)\.)?(.+\._extra_state/shard_)([\d.]+)_.*"
)


def _renamed(key: str, keys: Keys, layers: int, experts: int) -> str:
    """The key of a module's `_extra_state` in this form; any other key stays."""
    found = _STATE.fullmatch(key)
    if not found:
        return key
    begin, layer, within, expert, end, index = found.groups()
    numbers = index.split(".")
    layer = layer or numbers.pop(0)
    axes = [(layer, layers)] if keys == "stacked" else []
    if within:
        axes.append((expert or numbers.pop(0), experts))
    where, whole = zip(*(axes or [("0", 1)]), strict=True)
    begin += "" if keys == "stacked" else f"{layer}."
    return f"{begin}{within or ''}{end}{'.'.join(where)}_{'.'.join(map(str, whole))}"


def _others(folder: Path) -> list[tuple[str, bytes]]:
    """The options of the run and the like."""
    own = {torch_dist.METADATA, torch_dist.COMMON, checkpoint.MARKER}
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".distcp")
    return [(path.name, path.read_bytes()) for path in files if path.name not in own]
