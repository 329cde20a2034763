"""Megatron's `torch_dist` checkpoints, read and written without a process group and without megatron.

A checkpoint folder is
    .metadata             pickle of torch.distributed.checkpoint.metadata.Metadata: for each key its global
                          shape, dtype and chunks, and in which file, at which byte, each chunk lies
    __{rank}_{n}.distcp   the chunks one after another, each a whole `torch.save` of one tensor
    common.pt             what is not sharded (never unpickled here; only its checksums are looked at)
    metadata.json         names the format; written last, so a folder that has it is complete
and a key is either a tensor or an object (bytes); TransformerEngine's `_extra_state` are objects.

Both directions hold one chunk in memory. Reading trusts nothing: `.metadata` is unpickled with the
dozen classes it may name, chunks with torch's `weights_only`, and no file outside the folder is opened.
"""

import functools
import io
import json
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.checkpoint import filesystem, metadata, planner

from converters.checkpoint import MARKER
from converters.tensors import CARRIER, TensorSpec
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users

METADATA = ".metadata"
COMMON = "common.pt"
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}

BLOB_OVERHEAD_BYTES = 4096
"""More than `torch.save` adds to a tensor's bytes (about 1.6 kB measured with torch 2.13)."""

Box = tuple[int, ...]

BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, LookupError, ValueError),
    *(TypeError, AttributeError, RuntimeError, OverflowError, MemoryError),
)
"""What readers of pickles and zips raise on bytes that were cut off or overwritten (all but one of these were seen
by changing bytes at random)."""


class Damaged(UserError):
    """A checkpoint whose files are not all there or not what was written."""

    def __init__(self, what: str, fix: str = "Copy the checkpoint again from its origin.") -> None:
        super().__init__(what, fix)


def to_torch(array: np.ndarray, dtype: str) -> torch.Tensor:
    """The tensor whose bits a carrier array holds, on the same memory."""
    return torch.from_numpy(array).view(getattr(torch, dtype))


def to_carrier(tensor: torch.Tensor) -> np.ndarray:
    """The bits of a CPU tensor, on the same memory where it is contiguous."""
    carrier = CARRIER[dtype_name(tensor.dtype)]
    tensor = tensor.contiguous()
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = tensor.view(torch.uint8).view({1: torch.uint8, 2: torch.uint16}[carrier.itemsize])
    return np.asarray(tensor.numpy())


def cast(array: np.ndarray, stored: str, dtype: str) -> np.ndarray:
    """The same numbers in another dtype, rounded to nearest even where that is narrower; carriers on both sides."""
    return to_carrier(to_torch(array, stored).to(getattr(torch, dtype)))


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


class TorchDistWriter:
    """Writes one checkpoint folder chunk by chunk into a single data file.

    Args:
        folder: made if need be.
        tensors: key → global shape and dtype; every one must be filled by `write`.

    Raises:
        UserError: the disk cannot hold them; said before anything is written.
    """

    FILE = "__0_0.distcp"

    def __init__(self, folder: Path, tensors: Mapping[str, TensorSpec], chunks: int) -> None:
        self.folder = folder
        self._tensors = tensors
        self._entries: dict[str, Any] = {key: _storage_metadata(spec) for key, spec in tensors.items()}
        self._places: dict[metadata.MetadataIndex, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / self.FILE).open("wb")
        expected = sum(spec.nbytes for spec in tensors.values()) + chunks * BLOB_OVERHEAD_BYTES
        with write_errors_are_the_users(folder, expected):
            os.posix_fallocate(self._stream.fileno(), 0, expected)

    def write(self, key: str, offset: Box, array: np.ndarray) -> None:
        """Append the chunk of `key` that begins at `offset`; `array` holds its bits and keeps its axes."""
        chunk = metadata.ChunkStorageMetadata(torch.Size(offset), torch.Size(array.shape))
        self._entries[key].chunks.append(chunk)
        self._append(metadata.MetadataIndex(key, offset), to_torch(array, self._tensors[key].dtype))

    def write_object(self, key: str, value: object) -> None:
        """Append an object, wrapped as megatron-core wraps a ShardedObject."""
        self._entries[key] = metadata.BytesStorageMetadata()
        self._append(metadata.MetadataIndex(key), [value])

    def _append(self, index: metadata.MetadataIndex, value: object) -> None:
        begin = self._stream.tell()
        with write_errors_are_the_users(self.folder):
            torch.save(value, self._stream)
        length = self._stream.tell() - begin
        self._places[index] = filesystem._StorageInfo(self.FILE, begin, length)

    def finish(self, common: Mapping[str, Any]) -> None:
        """Write `.metadata`, `common.pt` and, last, the marker.

        Raises:
            ValueError: some tensor's chunks do not cover it (a fault of the caller).
        """
        for key, spec in self._tensors.items():
            _check_tiling(key, spec, [(tuple(c.offsets), tuple(c.sizes)) for c in self._entries[key].chunks])
        with write_errors_are_the_users(self.folder):
            self._stream.truncate()
            _sync_and_close(self._stream)
            content = metadata.Metadata(self._entries, None, self._places, metadata.StorageMeta())
            _write_bytes(self.folder / METADATA, pickle.dumps(content))
            blob = io.BytesIO()
            torch.save(dict(common), blob)
            _write_bytes(self.folder / COMMON, blob.getvalue())
            _write_bytes(self.folder / MARKER, json.dumps(FORMAT).encode())

    def close(self) -> None:
        """Let go of the data file, finished or not."""
        self._stream.close()


def extra_state_keys(keys: Mapping[str, TensorSpec]) -> Iterator[str]:
    """Object keys under which TransformerEngine's layers look for their fp8 state: one a layer and module.

    Embedding and output layer have none; a module has one however many tensors it has.
    """
    modules = {key.rpartition(".")[0]: spec for key, spec in keys.items() if key.startswith("decoder.")}
    for module, spec in modules.items():
        layers = spec.shape[0] if module.startswith("decoder.layers.") else 1
        for layer in range(layers):
            shard = f"{layer}_{layers}" if module.startswith("decoder.layers.") else "0_1"
            yield f"{module}._extra_state/shard_{shard}"


def empty_extra_state() -> torch.Tensor:
    """What a TransformerEngine layer saves when it has never computed in fp8."""
    return torch.empty(0, dtype=torch.uint8)


class Chunk(NamedTuple):
    """A box of a global tensor, and where its bytes lie."""

    offset: Box
    shape: Box
    file: Path
    begin: int
    length: int


@dataclass(frozen=True)
class TorchDistCheckpoint:
    """What a checkpoint folder holds; `read` fetches one chunk."""

    folder: Path
    tensors: dict[str, TensorSpec]
    chunks: dict[str, list[Chunk]]
    objects: list[str]

    def read(self, key: str, chunk: Chunk) -> np.ndarray:
        """The bits of one chunk.

        Raises:
            UserError: the file is missing or cut off, or holds something else than `.metadata` says.
        """
        tensor = _load_tensor(chunk)
        spec = self.tensors[key]
        if tuple(tensor.shape) != chunk.shape or dtype_name(tensor.dtype) != spec.dtype:
            raise _damaged(
                chunk.file,
                f"`{key}` at {list(chunk.offset)} is {dtype_name(tensor.dtype)} {list(tensor.shape)}, "
                f"{METADATA} says {spec.dtype} {list(chunk.shape)}",
            )
        return to_carrier(tensor)


def open_checkpoint(folder: Path) -> TorchDistCheckpoint:
    """The content of a checkpoint folder, after checking that the chunks of every tensor tile it.

    Raises:
        UserError: not `torch_dist`, damaged, or its `.metadata` names a class that has no business there.
    """
    _check_format(folder)
    tensors: dict[str, TensorSpec] = {}
    chunks: dict[str, list[Chunk]] = {}
    objects: list[str] = []
    with _opened(folder / METADATA):
        content = _read_metadata(folder / METADATA)
        for key, entry in content.state_dict_metadata.items():
            if isinstance(entry, metadata.TensorStorageMetadata):
                tensors[key] = TensorSpec(tuple(entry.size), dtype_name(entry.properties.dtype))
                chunks[key] = _chunks(folder, key, content, entry.chunks, tensors[key])
            else:
                objects.append(key)
    return TorchDistCheckpoint(folder, tensors, chunks, objects)


def check_files(folder: Path) -> None:
    """Whether every file of a checkpoint is there and as long as its `.metadata` says; no tensor is read.

    Raises:
        Damaged: a file is missing, cut off or overwritten, as far as that shows without reading the tensors.
        UserError: this is no `torch_dist` checkpoint.
    """
    _check_format(folder)
    _check_common(folder / COMMON)
    ends: dict[str, int] = {}
    with _opened(folder / METADATA):
        for place in _read_metadata(folder / METADATA).storage_data.values():
            name = str(place.relative_path)
            ends[name] = max(ends.get(name, 0), place.offset + place.length)
        for name, end in ends.items():
            file = folder / name
            if not file.is_file():
                raise _damaged(file, "it is not there")
            if file.stat().st_size < end:
                raise _damaged(file, f"it is {file.stat().st_size:,} bytes long, its content ends at {end:,}")


def _check_common(file: Path) -> None:
    """It is a zip of a few kB, as `torch.save` writes it, with checksums that torch itself does not look at."""
    with _opened(file), zipfile.ZipFile(file) as archive:
        if name := archive.testzip():
            raise _damaged(file, f"{name} in it does not have its checksum")


def _chunks(
    folder: Path,
    key: str,
    content: metadata.Metadata,
    entries: list[metadata.ChunkStorageMetadata],
    spec: TensorSpec,
) -> list[Chunk]:
    found = []
    for entry in entries:
        place = content.storage_data.get(metadata.MetadataIndex(key, entry.offsets))
        if place is None:
            raise _damaged(folder / METADATA, f"it has no file for `{key}` at {list(entry.offsets)}")
        if not re.fullmatch(r"[\w.-]+\.distcp", place.relative_path):
            raise _damaged(folder / METADATA, f"it points to {place.relative_path!r}, not to a data file beside it")
        file = folder / place.relative_path
        found.append(Chunk(tuple(entry.offsets), tuple(entry.sizes), file, place.offset, place.length))
    try:
        _check_tiling(key, spec, [(chunk.offset, chunk.shape) for chunk in found])
    except ValueError as error:
        raise _damaged(folder / METADATA, str(error)) from None
    return found


def _check_format(folder: Path) -> None:
    try:
        said = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder / MARKER, str(error)) from None
    backend = said.get("sharded_backend") if isinstance(said, dict) else said
    if backend != FORMAT["sharded_backend"]:
        raise UserError(f"{folder} is a checkpoint of format {backend!r}.", "Formats that can be read: 'torch_dist'.")


def _check_tiling(key: str, spec: TensorSpec, boxes: list[tuple[Box, Box]]) -> None:
    """Boxes that stay inside, do not overlap, and have the tensor's volume in sum, tile it.

    Raises:
        ValueError: they do not.
    """
    for offset, shape in boxes:
        if any(o < 0 or o + s > whole for o, s, whole in zip(offset, shape, spec.shape, strict=True)):
            raise ValueError(f"the chunk of `{key}` at {list(offset)} leaves its shape {list(spec.shape)}")
    covered, whole = sum(math.prod(shape) for _, shape in boxes), math.prod(spec.shape)
    if covered != whole or len({offset for offset, _ in boxes}) != len(boxes) or _overlap(boxes):
        raise ValueError(f"the chunks of `{key}` hold {covered:,} elements of {whole:,}, or overlap")


def _overlap(boxes: list[tuple[Box, Box]]) -> bool:
    """Whether two boxes share an element: sorted by offset, only those that begin before a box ends can."""
    boxes = sorted(boxes)
    for number, (offset, shape) in enumerate(boxes):
        for other, extent in boxes[number + 1 :]:
            if not offset or other[0] >= offset[0] + shape[0]:
                break
            if all(a < b + t and b < a + s for a, s, b, t in zip(offset, shape, other, extent, strict=True)):
                return True
    return False


def _load_tensor(chunk: Chunk) -> torch.Tensor:
    with _opened(chunk.file), chunk.file.open("rb") as stream:
        stream.seek(chunk.begin)
        blob = stream.read(chunk.length)
    if len(blob) < chunk.length:
        raise _damaged(
            chunk.file, f"the chunk at byte {chunk.begin:,} lacks its last {chunk.length - len(blob):,} bytes"
        )
    try:
        tensor = torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except BROKEN:  # torch's words are advice on how to read it unsafely
        raise _damaged(chunk.file, f"the chunk at byte {chunk.begin:,} is no tensor") from None
    if not isinstance(tensor, torch.Tensor):
        raise _damaged(chunk.file, f"the chunk at byte {chunk.begin:,} is a {type(tensor).__name__}, not a tensor")
    return tensor


def _storage_metadata(spec: TensorSpec) -> metadata.TensorStorageMetadata:
    properties = metadata.TensorProperties(dtype=getattr(torch, spec.dtype))
    return metadata.TensorStorageMetadata(properties, torch.Size(spec.shape), [])


@functools.cache
def _allowed() -> dict[tuple[str, str], Any]:
    """All that the `.metadata` of torch and of megatron-core (which adds its plans) may name."""
    classes = [
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata.StorageMeta,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        planner.SavePlan,
        planner.WriteItem,
        planner.WriteItemType,
        planner.TensorWriteData,
        planner.BytesIOWriteData,
    ]
    allowed: dict[tuple[str, str], Any] = {(cls.__module__, cls.__qualname__): cls for cls in classes}
    allowed |= {("torch", name): getattr(torch, name) for name in ("Size", *CARRIER)}
    allowed["torch.serialization", "_get_layout"] = torch.serialization._get_layout
    return allowed


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _allowed()[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which has no business there") from None


def _read_metadata(file: Path) -> metadata.Metadata:
    """What the file says; call it and look at the result inside `_opened`, as anything may stand in it."""
    content = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
    if not isinstance(content, metadata.Metadata) or content.storage_data is None:
        raise _damaged(file, "it holds no checkpoint metadata")
    return content


@contextmanager
def _opened(file: Path) -> Iterator[None]:
    """Turn what goes wrong while `file` is read into a `Damaged` that names it."""
    try:
        yield
    except OSError as error:
        raise Damaged(f"cannot read {file}: {error.strerror}.") from None
    except BROKEN as error:
        raise _damaged(file, str(error) or type(error).__name__) from None


def _damaged(file: Path, what: str) -> Damaged:
    return Damaged(f"{file} is damaged or not trustworthy: {what}.")


def _write_bytes(path: Path, content: bytes) -> None:
    stream = path.open("wb")
    stream.write(content)
    _sync_and_close(stream)


def _sync_and_close(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()
