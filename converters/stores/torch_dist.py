"""Megatron's `torch_dist` checkpoints, and torch's own distributed ones, as placements; without torch.

A checkpoint folder is
    .metadata             for each key its global shape, dtype and chunks, and in which file, at which byte, each
                          chunk lies (`dist_metadata`)
    __{rank}_{n}.distcp   the chunks one after another, each a whole `torch.save` of one tensor (`torch_zip`)
    common.pt             what is not sharded: iteration, arguments, learning-rate schedule
    metadata.json         names the format; written last, so a folder that has it is complete
and a key is either a tensor or an object (bytes); TransformerEngine's `_extra_state` are objects.

Reading trusts nothing: no class of a file's choice is built, and no file outside the folder is opened.
"""

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.checkpoint import MARKER
from converters.plan import Target
from converters.space import Box, Placement, Stored, check_tiling, row_major
from converters.stores import dist_metadata, torch_zip
from converters.stores.dist_metadata import Blob, Listing
from converters.tensors import CARRIER, TensorSpec
from swift_mega.base.errors import UserError

METADATA = ".metadata"
COMMON = "common.pt"
COMMON_OBJECT = "common_state/shard_0_1"
"""The object in which megatron-core 0.19 keeps what 0.16 writes into `common.pt`."""
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
FILE_BYTES = 1 << 30
MAX_FILES = 8
"""A checkpoint is written into files of about `FILE_BYTES`, but not into more than this many."""

BROKEN = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, LookupError, ValueError),
    *(TypeError, AttributeError, RuntimeError, OverflowError, MemoryError, NotImplementedError),
)
"""What readers of pickles and zips raise on bytes that were cut off or overwritten (all but one of these were seen
by changing bytes at random)."""


class Damaged(UserError):
    """A checkpoint whose files are not all there or not what was written."""

    def __init__(self, what: str, fix: str = "Copy the checkpoint again from its origin.") -> None:
        super().__init__(what, fix)


@dataclass(frozen=True)
class TorchDistCheckpoint:
    """What a checkpoint folder holds."""

    folder: Path
    listing: Listing

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        return self.listing.tensors

    @property
    def objects(self) -> dict[str, Blob]:
        return self.listing.objects

    def stored(self, key: str) -> Stored:
        """Where the chunks of `key` lie, after looking into the zip of each.

        Raises:
            Damaged: a file is missing or cut off, or holds something else than `.metadata` says.
        """
        spec = self.tensors[key]
        chunks = self.listing.chunks[key]
        return Stored(spec, [self._placement(key, spec, offset, shape, blob) for offset, shape, blob in chunks])

    def _placement(self, key: str, spec: TensorSpec, offset: Box, shape: Box, blob: Blob) -> Placement:
        file = self.folder / blob.file
        with opened(file), file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if blob.begin + blob.length > size:
                missing = blob.begin + blob.length - size
                raise damaged(file, f"the chunk at byte {blob.begin:,} lacks its last {missing:,} bytes")
            record = torch_zip.read(stream.fileno(), blob.begin, blob.length)
        if not isinstance(record, torch_zip.TensorRecord):
            raise damaged(file, f"the chunk at byte {blob.begin:,} is a {type(record).__name__}, not a tensor")
        if record.spec != TensorSpec(shape, spec.dtype) or not record.contiguous:
            raise damaged(
                file,
                f"`{key}` at {list(offset)} is {record.spec.dtype} {list(record.spec.shape)}, "
                f"{METADATA} says {spec.dtype} {list(shape)}",
            )
        return Placement(offset, shape, file, record.begin, row_major(shape, CARRIER[spec.dtype].itemsize))

    def object(self, key: str) -> bytes:
        """The bytes of an object.

        Raises:
            Damaged: its file is missing or cut off.
        """
        blob = self.objects[key]
        file = self.folder / blob.file
        with opened(file), file.open("rb") as stream:
            content = os.pread(stream.fileno(), blob.length, blob.begin)
        if len(content) < blob.length:
            raise damaged(file, f"the object at byte {blob.begin:,} is cut off")
        return content

    def common(self) -> dict[str, Any]:
        """What is not sharded: plain values, with arguments as an `argparse.Namespace`.

        Raises:
            Damaged: it cannot be read, or names a class that has no business there.
        """
        blob = self.objects.get(COMMON_OBJECT)
        file = self.folder / (blob.file if blob else COMMON)
        with opened(file), file.open("rb") as stream:
            begin, length = (blob.begin, blob.length) if blob else (0, os.fstat(stream.fileno()).st_size)
            value = torch_zip.read(stream.fileno(), begin, length)
            value = value[0] if blob else value
        if not isinstance(value, dict):
            raise damaged(file, f"it holds a {type(value).__name__}, not a dict")
        return value


def open_checkpoint(folder: Path) -> TorchDistCheckpoint:
    """The content of a Megatron checkpoint folder, after checking that the chunks of every tensor tile it.

    Raises:
        UserError: not `torch_dist`, damaged, or its `.metadata` names a class that has no business there.
    """
    _check_format(folder)
    return open_distributed(folder)


def open_distributed(folder: Path) -> TorchDistCheckpoint:
    """The content of any folder with a `.metadata`, Megatron's or torch's own, none of its data files cut off.

    Raises:
        Damaged: a file is missing or too short, or `.metadata` is not what it should be.
    """
    with opened(folder / METADATA):
        listing = dist_metadata.read(folder / METADATA)
        for key, chunks in listing.chunks.items():
            check_tiling(key, listing.tensors[key], [(offset, shape) for offset, shape, _ in chunks])
        blobs = [blob for chunks in listing.chunks.values() for _, _, blob in chunks]
        for blob in [*blobs, *listing.objects.values()]:
            if not re.fullmatch(r"[\w.-]+\.distcp", blob.file):
                raise damaged(folder / METADATA, f"it points to {blob.file!r}, not to a data file beside it")
    _check_ends(folder, listing)
    return TorchDistCheckpoint(folder, listing)


def _check_ends(folder: Path, listing: Listing) -> None:
    """Every tensor and object lies inside its file: a cut that hits only objects would not show in the tensors."""
    ends: dict[str, int] = {}
    blobs = (blob for chunks in listing.chunks.values() for _, _, blob in chunks)
    for blob in (*blobs, *listing.objects.values()):
        ends[blob.file] = max(ends.get(blob.file, 0), blob.begin + blob.length)
    for name, end in ends.items():
        if not (folder / name).is_file():
            raise damaged(folder / name, "it is not there")
        if (size := (folder / name).stat().st_size) < end:
            raise damaged(folder / name, f"it is {size:,} bytes long, its content ends at {end:,}")


def check_files(folder: Path) -> None:
    """Whether every file of a checkpoint is there and as long as its `.metadata` says; no tensor is read.

    Raises:
        Damaged: a file is missing, cut off or overwritten, as far as that shows without reading the tensors.
        UserError: this is no `torch_dist` checkpoint.
    """
    checkpoint = open_checkpoint(folder)
    if COMMON_OBJECT not in checkpoint.objects:
        _check_common(folder / COMMON)


def _check_common(file: Path) -> None:
    """It is a zip of a few kB, as `torch.save` writes it, with checksums that torch itself does not look at."""
    with opened(file), zipfile.ZipFile(file) as archive:
        if name := archive.testzip():
            raise damaged(file, f"{name} in it does not have its checksum")


def _check_format(folder: Path) -> None:
    try:
        said = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(folder / MARKER, str(error)) from None
    backend = said.get("sharded_backend") if isinstance(said, dict) else said
    if backend != FORMAT["sharded_backend"]:
        raise UserError(f"{folder} is a checkpoint of format {backend!r}.", "Formats that can be read: 'torch_dist'.")


Chunks = Mapping[str, Sequence[tuple[Box, Box]]]
"""Key → (offset, shape) of the boxes that it is to be stored in."""


def layout(
    folder: Path,
    tensors: Mapping[str, TensorSpec],
    chunks: Sequence[tuple[str, Box, Box]],
    objects: Mapping[str, bytes],
    common: bytes | None,
) -> Target:
    """A checkpoint folder to be written.

    Args:
        tensors: key → global shape and dtype.
        chunks: (key, offset, shape) in the order in which they are to lie in the files.
        objects: key → content.
        common: content of `common.pt`. None: there is none, as its content is among the objects.
    """
    total = sum(TensorSpec(shape, tensors[key].dtype).nbytes for key, _, shape in chunks)
    count = min(MAX_FILES, max(1, -(-total // FILE_BYTES)))
    writer = _Layout(folder, total, count)
    listing = Listing(dict(tensors), {key: [] for key in tensors}, {})
    placements: dict[str, list[Placement]] = {key: [] for key in tensors}
    for key, offset, shape in chunks:
        spec = TensorSpec(shape, tensors[key].dtype)
        blob, file, begin = writer.add(torch_zip.frame(spec), spec.nbytes)
        listing.chunks[key].append((offset, shape, blob))
        placements[key].append(Placement(offset, shape, file, begin, row_major(shape, CARRIER[spec.dtype].itemsize)))
    for key, content in objects.items():
        listing.objects[key] = writer.add(torch_zip.Frame(content, b""), 0)[0]
    for key, spec in tensors.items():
        check_tiling(key, spec, [(offset, shape) for offset, shape, _ in listing.chunks[key]])
    space = {key: Stored(spec, placements[key]) for key, spec in tensors.items()}
    closing = [
        (folder / METADATA, dist_metadata.written(listing)),
        *([] if common is None else [(folder / COMMON, common)]),
        (folder / MARKER, json.dumps(FORMAT).encode()),
    ]
    return Target(space, writer.files, writer.fixed, closing)


class _Layout:
    """Places blobs one after another in files that are filled in turn."""

    def __init__(self, folder: Path, total: int, count: int) -> None:
        self.files = {folder / f"__{number}_0.distcp": 0 for number in range(count)}
        self.fixed: list[tuple[Path, int, bytes]] = []
        self._paths = list(self.files)
        self._per_file = -(-total // count)
        self._filled = 0

    def add(self, frame: torch_zip.Frame, payload: int) -> tuple[Blob, Path, int]:
        """Where the blob lies; and file and first byte of its payload."""
        file = self._paths[min(self._filled // max(1, self._per_file), len(self._paths) - 1)]
        begin = self.files[file]
        at = begin + len(frame.head)
        self.fixed += [(file, begin, frame.head), (file, at + payload, frame.tail)]
        self.files[file] = at + payload + len(frame.tail)
        self._filled += payload
        return Blob(file.name, begin, self.files[file] - begin), file, at


@contextmanager
def opened(file: Path) -> Iterator[None]:
    """Turn what goes wrong while `file` is read into a `Damaged` that names it."""
    try:
        yield
    except OSError as error:
        raise Damaged(f"cannot read {file}: {error.strerror}.") from None
    except BROKEN as error:
        raise damaged(file, str(error) or type(error).__name__) from None


def damaged(file: Path, what: str) -> Damaged:
    """The error that names a file and what is wrong with it."""
    return Damaged(f"{file} is damaged or not trustworthy: {what}.")
