"""A Hugging Face folder of safetensors files: memory-mapped arrays by name, torch-free.

A file is: 8 bytes little-endian header length N, N bytes of JSON
`{"name": {"dtype", "shape", "data_offsets": [begin, end]}, …, "__metadata__": {…}}`, then the data.
Several files are one model through `model.safetensors.index.json` (`weight_map`: name → file).
Format: https://github.com/huggingface/safetensors#format

Reading checks everything that can be wrong without touching the data: a truncated or missing shard
ends here, with its name, and not later as garbage in a model. Writing preallocates files with their
final headers, so that any number of processes can fill disjoint slices of one folder.
"""

import functools
import json
import os
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.plan import Target
from converters.space import Placement, Space, Stored, row_major
from converters.stores.files import json_bytes, read_json, sync, write_json
from converters.tensors import CARRIER, TensorSpec
from swift_mega.base.console import counted
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PARTIAL = ".partial"
"""Suffix of a file that is being filled; `finish` takes it off."""

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' dtype name → torch's."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation; a longer header is a damaged file."""


Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Place:
    """Where one tensor lies."""

    spec: TensorSpec
    file: Path
    offset: int
    """Of its first byte, from the start of the file."""

    def stored(self) -> Stored:
        shape, itemsize = self.spec.shape, CARRIER[self.spec.dtype].itemsize
        whole = Placement((0,) * len(shape), shape, self.file, self.offset, row_major(shape, itemsize))
        return Stored(self.spec, [whole])


class SafetensorsFolder:
    """Arrays by tensor name; each is a window on the mapped file, so nothing is read before it is used."""

    def __init__(self, path: Path, places: dict[str, Place], writable: bool, notes: Sequence[str] = ()) -> None:
        self.path = path
        self.places = places
        self.notes = list(notes)
        """What the files hold besides, and why it is left out; for the user to read."""
        self.tensors: dict[str, TensorSpec] = {name: place.spec for name, place in places.items()}
        self._writable = writable
        self._maps: dict[Path, np.memmap] = {}

    def space(self) -> Space:
        """Where each tensor lies, under its Hugging Face name."""
        return {name: place.stored() for name, place in self.places.items()}

    def dtype(self, name: str) -> str:
        """torch's name of a tensor's dtype."""
        return self.tensors[name].dtype

    def without(self, names: Collection[str]) -> "SafetensorsFolder":
        """The same folder without some of its tensors."""
        kept = {name: place for name, place in self.places.items() if name not in names}
        return SafetensorsFolder(self.path, kept, self._writable, self.notes)

    def array(self, name: str) -> np.ndarray:
        """The whole tensor as a window on its file, in the dtype that carries its bits (`CARRIER`)."""
        place = self.places[name]
        if place.file not in self._maps:
            self._maps[place.file] = np.memmap(place.file, np.uint8, mode="r+" if self._writable else "r")
        data = self._maps[place.file][place.offset : place.offset + place.spec.nbytes]
        return data.view(CARRIER[place.spec.dtype]).reshape(place.spec.shape)

    def part(self, name: str, index: Index) -> np.ndarray:
        """What `index`, with an entry for every axis, takes of a tensor; a window like `array`."""
        window: np.ndarray = self.array(name)[index]
        return window

    def flush(self) -> None:
        """Push what this process wrote to the disk."""
        with write_errors_are_the_users(self.path):
            for mapped in self._maps.values():
                mapped.flush()

    def close(self) -> None:
        self._maps.clear()


def open_folder(path: str | Path) -> SafetensorsFolder:
    """The weights of a Hugging Face folder, checked.

    Raises:
        UserError: no safetensors, or a shard that is missing, truncated or not what the index says.
    """
    folder = Path(path)
    if (folder / SINGLE).is_file():
        return SafetensorsFolder(folder, read_header(folder / SINGLE), writable=False)
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder} has neither {SINGLE} nor {INDEX}.",
            "Give a Hugging Face folder with safetensors weights; pickled weights (.bin, .pt) are never opened.",
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / INDEX} has no `weight_map`.", "Copy or download it again.")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise UserError(
                f"{folder / INDEX}: `weight_map` says that `{name}` is in {file!r}, which is no name of a file.",
                "Copy or download it again.",
            )
    places: dict[str, Place] = {}
    for shard in sorted(set(weight_map.values())):
        listed = {name for name, file in weight_map.items() if file == shard}
        places |= _read_shard(folder / shard, listed)
    return SafetensorsFolder(folder, {name: places[name] for name in weight_map}, writable=False)


def _read_shard(file: Path, listed: set[str]) -> dict[str, Place]:
    """The places of one shard, after checking that it holds exactly what the index lists."""
    if not file.is_file():
        raise UserError(
            f"{INDEX} lists {file.name}, which is not in {file.parent}.",
            f"Copy or download it; it holds {counted(len(listed), 'tensor')}, such as `{min(listed)}`.",
        )
    places = read_header(file)
    for difference, what in (
        (listed - set(places), f"are listed in {INDEX} for {file.name}, but are not in it"),
        (set(places) - listed, f"are in {file.name}, but not listed for it in {INDEX}"),
    ):
        if difference:
            raise UserError(f"{_some(difference)} {what}.", "Index and shards are of different models, or damaged.")
    return places


def read_header(file: Path) -> dict[str, Place]:
    """The tensors of one safetensors file; every length is checked against the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(file, f"it is {size:,} bytes long and its header should be {length:,}")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(file, name, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(file, f"its header cannot be read ({error})") from None
    _check_data(file, 8 + length, size, entries)
    return {name: Place(spec, file, 8 + length + begin) for name, (spec, begin, _) in entries.items()}


def _entry(file: Path, name: str, entry: dict[str, Any]) -> tuple[TensorSpec, int, int]:
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"{file}: `{name}` has dtype {entry['dtype']!r}.", f"Dtypes that can be read: {', '.join(DTYPES)}."
        )
    spec = TensorSpec(tuple(int(size) for size in entry["shape"]), DTYPES[entry["dtype"]])
    begin, end = entry["data_offsets"]
    if end - begin != spec.nbytes:
        raise _damaged(
            file, f"`{name}` of shape {list(spec.shape)} needs {spec.nbytes:,} bytes, the header has {end - begin:,}"
        )
    return spec, begin, end


def _check_data(file: Path, start: int, size: int, entries: Mapping[str, tuple[TensorSpec, int, int]]) -> None:
    """The tensors must tile the data of the file: no gap, no overlap, nothing beyond its end."""
    position = 0
    for name, (_, begin, end) in sorted(entries.items(), key=lambda item: item[1][1:]):
        if begin != position:
            raise _damaged(file, f"`{name}` begins at byte {begin:,} of the data instead of {position:,}")
        position = end
    if start + position != size:
        raise _damaged(file, f"it is {size:,} bytes long, its header describes {start + position:,}")


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} is truncated or damaged: {what}.", "Copy or download this file again.")


def _some(names: set[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def create(
    path: str | Path, tensors: Mapping[str, TensorSpec], max_shard_bytes: int = 5_000_000_000
) -> SafetensorsFolder:
    """Preallocate files for `tensors` (in this order over the shards), ready to be filled.

    The files carry `.partial` names until `finish`. Other processes join with `attach`. The blocks are
    allocated at once: a disk that is too small says so here, not in the middle of a mapped write.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    shards = split(tensors, max_shard_bytes)
    places: dict[str, Place] = {}
    with write_errors_are_the_users(folder, sum(spec.nbytes for spec in tensors.values())):
        for name, shard in shards.items():
            places |= _allocate(folder / (name + PARTIAL), shard)
    return SafetensorsFolder(folder, {name: places[name] for name in tensors}, writable=True)


def attach(path: str | Path) -> SafetensorsFolder:
    """The folder another process has `create`d, for writing into."""
    folder = Path(path)
    places: dict[str, Place] = {}
    for file in sorted(folder.glob(f"*.safetensors{PARTIAL}")):
        places |= read_header(file)
    if not places:
        raise UserError(f"{folder} holds no safetensors files that are being written.", "Was it created by rank 0?")
    return SafetensorsFolder(folder, places, writable=True)


def finish(store: SafetensorsFolder) -> None:
    """Sync, write the index of a sharded model, and give the files their names. Call when all have written."""
    store.flush()
    store.close()
    shards = {place.file: place.file.with_suffix("") for place in store.places.values()}
    with write_errors_are_the_users(store.path):
        for partial, final in shards.items():
            sync(partial)
            os.replace(partial, final)
        if len(shards) > 1 or SINGLE not in {final.name for final in shards.values()}:
            write_json(store.path / INDEX, _index(store))
    sync(store.path)
    store.places = {name: Place(place.spec, shards[place.file], place.offset) for name, place in store.places.items()}


def _index(store: SafetensorsFolder) -> dict[str, Any]:
    return {
        "metadata": {
            "total_parameters": sum(int(np.prod(spec.shape, dtype=np.int64)) for spec in store.tensors.values()),
            "total_size": sum(spec.nbytes for spec in store.tensors.values()),
        },
        "weight_map": {name: place.file.name.removesuffix(PARTIAL) for name, place in store.places.items()},
    }


def split(tensors: Mapping[str, TensorSpec], max_shard_bytes: int) -> dict[str, dict[str, TensorSpec]]:
    """Shard name → its tensors: as many as fit, in the order given; a larger tensor has a shard alone."""
    shards: list[dict[str, TensorSpec]] = []
    filled = 0
    for name, spec in tensors.items():
        if not shards or filled + spec.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += spec.nbytes
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, start=1)}


def _allocate(file: Path, tensors: Mapping[str, TensorSpec]) -> dict[str, Place]:
    """Write the header and reserve the data."""
    head, places = header(file, tensors)
    size = sum(spec.nbytes for spec in tensors.values())
    with file.open("wb") as stream:
        stream.write(head)
        stream.flush()
        if size:
            os.posix_fallocate(stream.fileno(), len(head), size)
    return places


def header(file: Path, tensors: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, Place]]:
    """What a file begins with, and where in it the tensors lie. Order and padding are the reference implementation's,
    so that equal tensors give equal files: widest dtype first, then by name; padded to 8 bytes with blanks."""
    ordered = sorted(tensors.items(), key=lambda item: (-CARRIER[item[1].dtype].itemsize, item[0]))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, spec in ordered:
        span = [position, position + spec.nbytes]
        entries[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": span}
        position += spec.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {name: Place(spec, file, start + entries[name]["data_offsets"][0]) for name, spec in ordered}
    return struct.pack("<Q", len(text)) + text, places


def layout(folder: Path, tensors: Mapping[str, TensorSpec], max_shard_bytes: int) -> Target:
    """A Hugging Face folder to be written, shard by shard in the order of `tensors`."""
    shards = [one_file(folder / name, shard) for name, shard in split(tensors, max_shard_bytes).items()]
    target = functools.reduce(Target.joined, shards)
    if len(shards) == 1:
        return target
    found = places(target)
    store = SafetensorsFolder(folder, {name: found[name] for name in tensors}, writable=False)
    return target.joined(Target({}, {}, [], [(folder / INDEX, json_bytes(_index(store)))]))


def one_file(file: Path, tensors: Mapping[str, TensorSpec]) -> Target:
    """A safetensors file to be written."""
    head, within = header(file, tensors)
    size = len(head) + sum(spec.nbytes for spec in tensors.values())
    return Target({name: place.stored() for name, place in within.items()}, {file: size}, [(file, 0, head)])


def places(target: Target) -> dict[str, Place]:
    """Where the tensors of a folder that is to be written will lie."""
    found = {}
    for name, stored in target.space.items():
        (whole,) = stored.placements
        assert whole.file is not None, "a file holds it"
        found[name] = Place(stored.spec, whole.file, whole.begin)
    return found
