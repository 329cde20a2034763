"""The tensors of a model as its Hugging Face folder would hold them, whatever the format and layout it lies in.

This is what two checkpoints are compared by: no padding, no interleaving, no stacking, the names that people know.
A Megatron checkpoint is read through the plan of its export, one tensor at a time into memory instead of a file.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from converters import engine
from converters.export import export_plan, exported_tensors
from converters.opening import open_source
from converters.plan import Move
from converters.source import Source
from converters.space import span
from converters.stores.files import json_bytes, read_json
from converters.stores.safetensors import Place
from converters.tensors import CARRIER, TensorSpec
from swift_mega.base.console import progress
from swift_mega.base.errors import UserError


@dataclass(frozen=True)
class Logical:
    """A model that can be read tensor by tensor."""

    path: Path
    tensors: dict[str, TensorSpec]
    moves: dict[str, list[Move]]
    """Hugging Face name → what fills it."""

    def read(self, name: str, files: engine.Files) -> np.ndarray:
        """A whole tensor, in the dtype that carries its bits."""
        spec = self.tensors[name]
        buffer = bytearray(spec.nbytes)
        for move in self.moves[name]:
            box = engine.load(move, files)
            carrier = CARRIER[move.target_dtype]
            extent = span(move.shape, move.target_strides, carrier.itemsize)
            window = memoryview(buffer)[move.at : move.at + extent]
            np.ndarray(move.shape, carrier, window, strides=move.target_strides)[...] = box
        return np.frombuffer(buffer, CARRIER[spec.dtype]).reshape(spec.shape)


def open_logical(path: Path, config: Path | None = None) -> Logical:
    """The model in a folder of any format.

    Args:
        path: the folder, or a GGUF file.
        config: a folder with config.json, where the checkpoint has none.

    Raises:
        UserError: see `open_source`.
    """
    return logical(open_source(path, config=config), path)


def logical(source: Source, path: Path | None = None) -> Logical:
    """An opened model, called `path`."""
    tensors = exported_tensors(source)
    # Every tensor is a file of its own, which is never written.
    plan = export_plan(source, {name: Place(spec, Path(name), 0) for name, spec in tensors.items()})
    moves: dict[str, list[Move]] = defaultdict(list)
    for move in plan.moves:
        moves[str(move.target)].append(move)
    return Logical(path or source.path, tensors, moves)


def arrays(model: Logical, desc: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor in turn, with a progress bar."""
    total = sum(spec.nbytes for spec in model.tensors.values())
    with contextlib.closing(engine.Files()) as files, progress(total, desc, "B", unit_scale=True) as bar:
        for name in model.tensors:
            array = model.read(name, files)
            bar.update(array.nbytes)
            yield name, array


def fingerprints(model: Logical) -> dict[str, dict[str, Any]]:
    """For each tensor dtype, shape and the xxh3-128 of its bytes: the same in every format and layout."""
    return {
        name: {
            "dtype": model.tensors[name].dtype,
            "shape": list(model.tensors[name].shape),
            "xxh3_128": xxhash.xxh3_128(array.reshape(-1).view(np.uint8).data).hexdigest(),
        }
        for name, array in arrays(model, f"reading {model.path.name}")
    }


def write_manifest(path: Path, tensors: dict[str, dict[str, Any]]) -> None:
    """A manifest: what `fingerprints` gave, as JSON."""
    path.write_bytes(json_bytes({"algorithm": "xxh3_128", "tensors": tensors}, sort_keys=False))


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a manifest.

    Raises:
        UserError: it is none.
    """
    tensors = read_json(path).get("tensors")
    if not isinstance(tensors, dict) or not all(isinstance(entry, dict) for entry in tensors.values()):
        raise UserError(f"{path} is no manifest.", "Make one with `swift-mega convert manifest FOLDER`.")
    return tensors


def differences(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]], here: str, there: str) -> list[str]:
    """What differs between two manifests, a line for each tensor.

    Args:
        one: of what is called `here`.
        other: of what is called `there`.
    """
    found = [f"`{name}` is only in {here}" for name in one.keys() - other.keys()]
    found += [f"`{name}` is only in {there}" for name in other.keys() - one.keys()]
    both = one.keys() & other.keys()
    return sorted(found + [f"`{name}` {fault}" for name in both if (fault := _fault(one[name], other[name]))])


def _fault(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first of its properties in which a tensor differs."""
    for what in ("dtype", "shape", "xxh3_128"):
        if one.get(what) != other.get(what):
            return f"differs in its {what}: {one.get(what)} and {other.get(what)}"
    return None
