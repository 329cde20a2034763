"""What a conversion writes, as data: the files of each kind of target, and the plan that fills them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from converters import adapters, checkpoint, ranks
from converters.export import export_plan, exported_tensors
from converters.families._common import EMBEDDING, OUTPUT
from converters.family import padded_vocab_size
from converters.megatron_lm import megatron_lm_arguments
from converters.options import ADAPTERS, DIVISIBLE_BY, NAMES, Format, Options
from converters.plan import Plan, Target, make_plan
from converters.relayout import (
    CONTENT,
    Content,
    Keys,
    boxes_per_layer,
    check_form,
    per_layer,
    relaid,
    specs_per_layer,
    weight_of,
)
from converters.scatter import scattered
from converters.source import Source
from converters.space import Box, Space, extended, in_order_of
from converters.stores import safetensors, torch_dist, torch_zip
from converters.stores.extra_state import extra_states
from converters.stores.files import json_bytes
from converters.tensors import TensorSpec

VOCABULARY = {EMBEDDING, OUTPUT}
MAX_CHUNK_BYTES = 1 << 30
"""A larger box of a tensor is stored in several chunks, cut along its rows."""


@dataclass(frozen=True)
class Conversion:
    """All that is known before the first byte moves."""

    source: Source
    to: Format
    target: Target
    plan: Plan
    hf_files: Path
    """The folder that takes config.json, tokenizer and the like."""
    tensors: dict[str, TensorSpec]
    """Of the target, under its own names."""

    @property
    def title(self) -> str:
        """What becomes what, for the user to read."""
        to = ADAPTERS[self.to] if self.source.adaptable is not None else NAMES[self.to]
        return f"{NAMES[self.source.kind]} → {to}"


def _to_megatron(source: Source, root: Path, options: Options) -> Conversion:
    check_form(options.keys, source.rules)
    dtypes = source.dtypes_in_megatron(options.dtype)
    if source.adaptable is not None:
        return _adapter_to_megatron(source, root / checkpoint.RELEASE, options)
    rows = _rows(source, options)
    if source.stored is None or options.weights_only or options.adapter is not None:
        folder = root / checkpoint.RELEASE
        content = _weights(source, rows, dtypes, options.keys)
    else:
        folder = root / _iteration(source.path, source.stored)
        content = relaid(source.stored, source.arguments, source.rules, dtypes, options.keys, rows)
        source = replace(source, notes=[])
    return _torch_dist(source, folder, content)


def _torch_dist(source: Source, folder: Path, content: Content) -> Conversion:
    boxes = in_order_of(content.space, content.boxes)
    chunks = [part for key, offset, shape in boxes for part in _small(key, offset, shape, content.tensors[key].dtype)]
    target = torch_dist.layout(folder, content.tensors, chunks, content.objects, content.common)
    target.closing[:0] = [(folder / name, text) for name, text in content.others]
    return _beside(source, "megatron", target, folder / checkpoint.HF, content.tensors, content.space)


def _adapter_to_megatron(source: Source, folder: Path, options: Options) -> Conversion:
    """A Megatron checkpoint of nothing but an adapter."""
    assert source.adaptable is not None, "an adapter"
    space = source.space if options.keys == "per-layer" else adapters.stacked(source.space, source.adaptable)
    tensors = {key: TensorSpec(one.spec.shape, options.dtype or one.spec.dtype) for key, one in space.items()}
    boxes = [(key, (0,) * len(spec.shape), spec.shape) for key, spec in tensors.items()]
    common = _common(source, source.adaptable.sizes["padded_vocab"], options.keys)
    return _torch_dist(source, folder, Content(space, tensors, boxes, {}, common, []))


def _iteration(folder: Path, stored: torch_dist.TorchDistCheckpoint) -> str:
    """Name of the folder of a checkpoint that is written anew."""
    if folder.name == checkpoint.RELEASE:
        return folder.name
    step = stored.common().get("iteration")
    return checkpoint.iteration_name(step if isinstance(step, int) else None)


def _weights(source: Source, rows: int, dtypes: dict[str, str], keys: Keys | None) -> Content:
    """A Megatron checkpoint of nothing but weights."""
    shapes = {key: stored.spec.shape for key, stored in source.space.items()}
    shapes |= {key: (rows, *shapes[key][1:]) for key in VOCABULARY & set(shapes)}
    boxes = [(key, *box) for key, rule in source.rules.items() for box in ranks.chunks(rule, shapes[key])]
    tensors = {key: TensorSpec(shape, dtypes[key]) for key, shape in shapes.items()}
    space = source.space
    if keys == "per-layer":
        space, boxes, tensors = per_layer(space), list(boxes_per_layer(boxes)), specs_per_layer(tensors)
    return Content(space, tensors, boxes, extra_states(tensors), _common(source, rows, keys), [])


def _common(source: Source, rows: int, keys: Keys | None) -> bytes:
    common = {
        "checkpoint_version": 3.0,
        "iteration": 0,
        "args": megatron_lm_arguments(source.arguments, rows),
        "content_metadata": CONTENT[keys] if keys else {"singleton_local_shards": False},
    }
    return torch_zip.saved(common)


def _rows(source: Source, options: Options) -> int:
    """Of the embedding, with its padding."""
    stored = source.space[EMBEDDING].spec.shape[0]
    if source.view is not None or (options.vocab_divisible_by is None and options.target_tp == 1):
        return stored
    return padded_vocab_size(source.arguments.vocab_size, options.vocab_divisible_by or DIVISIBLE_BY, options.target_tp)


def _to_legacy(source: Source, root: Path, options: Options) -> Conversion:
    grid = ranks.Grid(
        options.target_tp,
        options.target_pp,
        options.target_vpp,
        options.target_ep,
        options.layer_spec,
        options.target_first_stage_layers,
        options.target_last_stage_layers,
    )
    rows, dtypes = _rows(source, options), source.dtypes_in_megatron(options.dtype)
    shapes = {key: stored.spec.shape for key, stored in source.space.items()}
    shapes |= {key: (rows, *shapes[key][1:]) for key in VOCABULARY & set(shapes)}
    tensors = {key: TensorSpec(shape, dtypes[key]) for key, shape in shapes.items()}
    folder = root / checkpoint.RELEASE
    namespace = megatron_lm_arguments(source.arguments, rows)
    vars(namespace).update(grid.arguments)
    others = {"checkpoint_version": 3.0, "iteration": 0, "args": namespace}
    target = scattered(folder, tensors, source.rules, source.arguments, grid, others)
    return _beside(source, "legacy", target, folder / checkpoint.HF, tensors, source.space)


def _beside(
    source: Source, to: Format, target: Target, hf: Path, tensors: dict[str, TensorSpec], space: Space
) -> Conversion:
    """The conversion to a Megatron checkpoint, with what an export will need in its folder `hf`."""
    if source.form is not None:
        form = json_bytes({"form": source.form})
        target = target.joined(Target({}, {}, [], [(hf / checkpoint.EXPORT, form)]))
    if source.set_aside:
        specs = {name: stored.spec for name, stored in source.set_aside.items()}
        target = target.joined(safetensors.one_file(hf / checkpoint.UNMAPPED, specs))
    padded = [key for key in space if weight_of(key) in VOCABULARY]
    rows = {key: max(space[key].spec.shape[0], tensors[key].shape[0]) for key in padded}
    read = space | {key: extended(space[key], rows[key]) for key in padded} | source.set_aside
    written = target.space | {key: extended(target.space[key], rows[key]) for key in padded}
    return Conversion(source, to, target, make_plan(read, written), hf, tensors)


def _small(key: str, offset: Box, shape: Box, dtype: str) -> Iterator[tuple[str, Box, Box]]:
    """A box cut along its rows into chunks of at most `MAX_CHUNK_BYTES`."""
    axis = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    nbytes = TensorSpec(shape, dtype).nbytes
    rows = max(1, shape[axis] * MAX_CHUNK_BYTES // max(1, nbytes))
    for first in range(0, max(1, shape[axis]), rows):
        count = min(rows, shape[axis] - first)
        begin = (*offset[:axis], offset[axis] + first, *offset[axis + 1 :])
        yield key, begin, (*shape[:axis], count, *shape[axis + 1 :])


def _to_hf(source: Source, folder: Path, options: Options) -> Conversion:
    tensors = exported_tensors(source, options.dtype)
    if source.adaptable is None:
        target = safetensors.layout(folder, tensors, options.max_shard_bytes)
    else:
        target = safetensors.one_file(folder / adapters.WEIGHTS, tensors)
    plan = export_plan(source, safetensors.places(target))
    return Conversion(source, "hf", target, plan, folder, tensors)


CONVERSIONS = {"megatron": _to_megatron, "legacy": _to_legacy, "hf": _to_hf}
