"""`.metadata` of a distributed checkpoint, read and written without torch.

It is a pickle of torch's `Metadata`: for each key its dtype, global shape and chunks, and for each chunk the file
and the bytes where its zip (`torch_zip`) lies. Stand-ins with the attributes of torch's classes take their place;
written, they bear torch's names. Nothing else is built from the file.
Source of the names: torch.distributed.checkpoint.metadata (torch 2.13).
"""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from converters.space import Box
from converters.stores import opcodes as op
from converters.stores.torch_zip import Global, Opaque, Unpickler
from converters.tensors import CARRIER, TensorSpec

METADATA = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"


class Blob(NamedTuple):
    """Where the zip of a chunk, or of an object, lies."""

    file: str
    begin: int
    length: int


class Listing(NamedTuple):
    """What a `.metadata` says."""

    tensors: dict[str, TensorSpec]
    chunks: dict[str, list[tuple[Box, Box, Blob]]]
    """Key → (offset, shape, where) of each chunk."""
    objects: dict[str, Blob]


class _StandIn:
    """An object of torch's with its attributes and nothing else."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state

    def __hash__(self) -> int:
        return hash((self.__dict__.get("fqn"), self.__dict__.get("offset")))

    def __eq__(self, other: object) -> bool:
        return self is other


class _Metadata(_StandIn): ...


class _Index(_StandIn):
    fqn: str
    offset: Box | None = None
    """torch leaves it out where it is None."""


class _Tensor(_StandIn): ...


class _Bytes(_StandIn): ...


class _Chunk(_StandIn): ...


class _Properties(_StandIn): ...


class _StorageMeta(_StandIn): ...


class _StorageInfo(_StandIn): ...


STAND_INS: dict[tuple[str, str], type[_StandIn]] = {
    (METADATA, "Metadata"): _Metadata,
    (METADATA, "MetadataIndex"): _Index,
    (METADATA, "TensorStorageMetadata"): _Tensor,
    (METADATA, "BytesStorageMetadata"): _Bytes,
    (METADATA, "ChunkStorageMetadata"): _Chunk,
    (METADATA, "TensorProperties"): _Properties,
    (METADATA, "StorageMeta"): _StorageMeta,
    (FILESYSTEM, "_StorageInfo"): _StorageInfo,
}


KNOWN = {**STAND_INS, (METADATA, "_MEM_FORMAT_ENCODING"): Opaque}


class NoMetadata(ValueError):
    """The file is a pickle, but not one of checkpoint metadata."""


def read(path: Path) -> Listing:
    """What `path` says.

    Raises:
        pickle.UnpicklingError, EOFError, AttributeError, ValueError, …: damaged, or not to be trusted.
    """
    content = Unpickler(io.BytesIO(path.read_bytes()), KNOWN).load()
    if not isinstance(content, _Metadata) or not content.__dict__.get("storage_data"):
        raise NoMetadata("it holds no checkpoint metadata")
    places = {
        (index.fqn, None if index.offset is None else tuple(index.offset)): Blob(
            str(info.relative_path), int(info.offset), int(info.length)
        )
        for index, info in content.__dict__["storage_data"].items()
    }
    tensors: dict[str, TensorSpec] = {}
    chunks: dict[str, list[tuple[Box, Box, Blob]]] = {}
    objects: dict[str, Blob] = {}
    for key, entry in content.__dict__["state_dict_metadata"].items():
        if isinstance(entry, _Tensor):
            tensors[key] = TensorSpec(tuple(entry.__dict__["size"]), _dtype(entry.__dict__["properties"]))
            boxes = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in entry.__dict__["chunks"]]
            chunks[key] = [(offset, shape, _place(places, key, offset)) for offset, shape in boxes]
        elif isinstance(entry, _Bytes):
            objects[key] = _place(places, key, None)
        else:
            raise NoMetadata(f"`{key}` is neither tensor nor bytes")
    return Listing(tensors, chunks, objects)


def _place(places: Mapping[tuple[str, Box | None], Blob], key: str, offset: Box | None) -> Blob:
    try:
        return places[key, offset]
    except KeyError:
        where = f" at {list(offset)}" if offset is not None else ""
        raise NoMetadata(f"it has no file for `{key}`{where}") from None


def _dtype(properties: Any) -> str:
    """Of torch's TensorProperties, whose state is a tuple that begins with it."""
    dtype = properties.__dict__.get("state", (None,))[0]
    if not isinstance(dtype, Global) or dtype.name not in CARRIER:
        raise NoMetadata(f"it has a tensor of dtype {dtype}")
    return dtype.name


def written(listing: Listing) -> bytes:
    """The content of a `.metadata` that says `listing`."""
    pickle = op.Pickle()

    def torch_object(cls: type[_StandIn], **state: bytes) -> bytes:
        entries = ((pickle.again(op.text(key)), value) for key, value in state.items())
        return op.instance(pickle.again(op.name(*_NAMES[cls])), op.mapping(entries))

    def size(box: Iterable[int]) -> bytes:
        return op.call(pickle.again(op.name("torch", "Size")), op.integers(box))

    def index(key: str, offset: Box | None) -> bytes:
        where = op.NONE if offset is None else size(offset)
        return torch_object(_Index, fqn=pickle.again(op.text(key)), offset=where, index=op.NONE)

    def info(blob: Blob) -> bytes:
        path, begin, length = pickle.again(op.text(blob.file)), op.integer(blob.begin), op.integer(blob.length)
        return torch_object(
            _StorageInfo, relative_path=path, offset=begin, length=length, transform_descriptors=op.NONE
        )

    def tensor(key: str, spec: TensorSpec) -> bytes:
        properties = op.instance(
            pickle.again(op.name(*_NAMES[_Properties])),
            op.sequence(
                [
                    op.name("torch", spec.dtype),
                    op.call(op.name("torch.serialization", "_get_layout"), op.text("torch.strided")),
                    op.FALSE,
                    op.call(op.name(METADATA, "_MEM_FORMAT_ENCODING"), op.integer(0)),
                    op.FALSE,
                ]
            ),
        )
        chunks = [
            torch_object(_Chunk, offsets=size(offset), sizes=size(shape)) for offset, shape, _ in listing.chunks[key]
        ]
        return torch_object(_Tensor, properties=properties, size=size(spec.shape), chunks=op.items(chunks))

    entries = [(pickle.again(op.text(key)), tensor(key, spec)) for key, spec in listing.tensors.items()]
    entries += [(pickle.again(op.text(key)), torch_object(_Bytes)) for key in listing.objects]
    places = [(index(key, offset), info(blob)) for key, chunks in listing.chunks.items() for offset, _, blob in chunks]
    places += [(index(key, None), info(blob)) for key, blob in listing.objects.items()]
    return pickle.whole(
        torch_object(
            _Metadata,
            state_dict_metadata=op.mapping(entries),
            planner_data=op.NONE,
            storage_data=op.mapping(places),
            storage_meta=torch_object(
                _StorageMeta, checkpoint_id=op.NONE, save_id=op.NONE, load_id=op.NONE, modules=op.items([])
            ),
            version=op.NONE,
        )
    )


_NAMES = {stand_in: name for name, stand_in in STAND_INS.items()}
