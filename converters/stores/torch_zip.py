"""What `torch.save` writes, read and written without torch: a zip whose payload lies at a known byte.

A file holds the records `archive/data.pkl` (a pickle of the object, with tensors as references), `byteorder`,
`version`, … and `archive/data/0`, `archive/data/1`, … (the bytes of the storages), all uncompressed. Knowing where
a storage begins is enough to copy a tensor. No pickle is trusted: `Unpickler` makes nothing but the few values that
a checkpoint consists of, and stand-ins of its own for torch's.

Format: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import argparse
import collections
import functools
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from converters.space import row_major
from converters.stores import opcodes as op
from converters.tensors import CARRIER, TensorSpec

ALIGNMENT = 64
"""Storages begin at multiples of it, counted from the beginning of the zip."""

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""torch's storage classes → dtype. Those without a class (float8) are an `UntypedStorage` with a dtype beside it."""
STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}


class Global(NamedTuple):
    """A name of another library, as a pickle has it: `torch bfloat16`."""

    module: str
    name: str


class Storage(NamedTuple):
    """A reference from the pickle to a record `data/<key>` with this dtype."""

    dtype: str | None
    key: str
    elements: int


class TensorRecord(NamedTuple):
    """A tensor inside a file: what it is, and where its first byte lies in the file."""

    spec: TensorSpec
    begin: int
    contiguous: bool


class _Reference(NamedTuple):
    """What `_rebuild_tensor_v2` would have made."""

    storage: Storage
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """An object of a class that has no business in a weight: its name is kept, its content is not built."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _rebuild_tensor(storage: Storage, first: int, shape: Any, strides: Any, *rest: Any) -> _Reference:
    if storage.dtype is None:
        raise pickle.UnpicklingError("it holds a storage without a dtype")
    return _Reference(storage, storage.dtype, int(first), tuple(shape), tuple(strides))


def _rebuild_typed(storage: Storage, first: int, shape: Any, strides: Any, *rest: Any) -> _Reference:
    """float8 and other dtypes without a storage class: the dtype is the last argument."""
    dtype = next((entry for entry in rest if isinstance(entry, Global) and entry.name in CARRIER), None)
    if dtype is None:
        raise pickle.UnpicklingError("it holds a tensor without a known dtype")
    return _Reference(storage, dtype.name, int(first), tuple(shape), tuple(strides))


def _rebuild_parameter(data: _Reference, *rest: Any) -> _Reference:
    return data


HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): Opaque,
    ("torch.serialization", "_get_layout"): Opaque,
    ("pathlib", "PosixPath"): Opaque,
    ("pathlib", "PurePosixPath"): Opaque,
    ("_codecs", "encode"): Opaque,
    ("numpy.core.multiarray", "_reconstruct"): Opaque,
    ("numpy._core.multiarray", "_reconstruct"): Opaque,
    ("numpy.core.multiarray", "scalar"): Opaque,
    ("numpy._core.multiarray", "scalar"): Opaque,
    ("numpy", "ndarray"): Opaque,
    ("numpy", "dtype"): Opaque,
    **{("torch", name): Global("torch", name) for name in (*CARRIER, *STORAGES, "complex64")},
    ("torch.storage", "UntypedStorage"): Global("torch.storage", "UntypedStorage"),
}
"""All that a file may name, and what is made of it here."""

OPAQUE_PACKAGES = ("megatron", "torch", "transformer_engine", "transformers", "signal")
"""Their classes (enums of the arguments, plans) become `Opaque`: nothing of them is imported or called."""


class Unpickler(pickle.Unpickler):
    """Builds plain values and references to storages; any other name ends it.

    Args:
        more: names that this kind of file may hold besides, and what is made of them.
    """

    def __init__(self, stream: io.BufferedIOBase, more: Mapping[tuple[str, str], Any] | None = None) -> None:
        super().__init__(stream)
        self._names = {**HARMLESS, **(more or {})}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return self._names[module, name]
        if module.split(".")[0] in OPAQUE_PACKAGES and name.split(".")[-1][:1].isupper():
            return type(name, (Opaque,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no business there")

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, elements = pid
        if kind != "storage" or not isinstance(storage, Global):
            raise pickle.UnpicklingError(f"it refers to {pid!r:.80}, which is no storage")
        return Storage(STORAGES.get(storage.name), str(key), int(elements))


class Window(io.RawIOBase):
    """Bytes `begin … begin+length` of a file as a file of their own."""

    def __init__(self, descriptor: int, begin: int, length: int) -> None:
        self._descriptor, self._begin, self._length, self._position = descriptor, begin, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._length)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._length - self._position))
        read = os.preadv(self._descriptor, [memoryview(buffer)[:wanted]], self._begin + self._position) if wanted else 0
        self._position += read
        return read


def read(descriptor: int, begin: int, length: int, more: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """The object in the zip at `begin … begin+length` of an open file, tensors as `TensorRecord`.

    Raises:
        pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError, …: damaged, or not to be trusted.
    """
    with zipfile.ZipFile(io.BufferedReader(Window(descriptor, begin, length))) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        value = Unpickler(io.BytesIO(archive.read(records["data.pkl"])), more).load()

    def place(reference: _Reference) -> TensorRecord:
        record = records[f"data/{reference.storage.key}"]
        if record.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{record.filename} is compressed")
        spec = TensorSpec(reference.shape, reference.dtype)
        itemsize = CARRIER[reference.dtype].itemsize
        payload = begin + record.header_offset + _local_header_length(descriptor, begin + record.header_offset)
        first = reference.first * itemsize
        if first + spec.nbytes > record.file_size:
            raise ValueError(
                f"{record.filename} is {record.file_size:,} bytes long, {first + spec.nbytes:,} are needed"
            )
        return TensorRecord(spec, payload + first, reference.strides == row_major(reference.shape, 1))

    return replaced(value, place)


def replaced(value: Any, place: Callable[[_Reference], TensorRecord]) -> Any:
    """`value` with every reference to a tensor replaced."""
    if isinstance(value, _Reference):
        return place(value)
    if isinstance(value, dict):
        return {key: replaced(entry, place) for key, entry in value.items()}
    if isinstance(value, list):
        return [replaced(entry, place) for entry in value]
    return value


LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
CENTRAL_HEADER = struct.Struct("<4sHHHHHHIIIHHHHHII")
END = struct.Struct("<4sHHHHIIH")
WIDE_END = struct.Struct("<4sQHHIIQQQQ")
"""The directory's end where numbers need 64 bits (zip64), followed by `LOCATOR` and `END`."""
LOCATOR = struct.Struct("<4sIQI")
LIMIT_32, LIMIT_16 = 0xFFFFFFFF, 0xFFFF
"""Numbers from these on are written as these, and in full in a zip64 field."""
WIDE_VERSION = 45
WIDE_FIELD = 1
PADDING = b"FB"
"""Name of the extra field by which torch pads."""


def _local_header_length(descriptor: int, offset: int) -> int:
    signature, *_, name, extra = LOCAL_HEADER.unpack(os.pread(descriptor, LOCAL_HEADER.size, offset))
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no record begins at byte {offset:,}")
    return LOCAL_HEADER.size + int(name) + int(extra)


class Archive(NamedTuple):
    """A file to be written but for the bytes of its tensors."""

    fixed: list[tuple[int, bytes]]
    """(first byte, content) of everything else."""
    payloads: list[int]
    """First byte of each tensor, in the order in which the value has them."""
    nbytes: int


class Frame(NamedTuple):
    """What stands before and after the bytes of a tensor in its zip."""

    head: bytes
    tail: bytes


def archive(value: object) -> Archive:
    """The zip of `value` as `torch.load` reads it; each `TensorSpec` in it stands for a contiguous tensor.

    Payloads have the checksum zero: torch looks at none, and reading every byte would cost more than copying it.
    """
    specs: list[TensorSpec] = []
    content = op.whole(_pickled(value, specs))
    writer = _ZipWriter()
    for name, record in {
        "data.pkl": content,
        ".format_version": b"1",
        ".storage_alignment": b"64",
        "byteorder": b"little",
    }.items():
        writer.add(name, record)
    payloads = [writer.reserve(f"data/{number}", spec.nbytes) for number, spec in enumerate(specs)]
    writer.add("version", b"3\n")
    writer.end()
    return Archive(writer.fixed, payloads, writer.position)


@functools.lru_cache(maxsize=4096)
def frame(spec: TensorSpec, wrapped: bool = False) -> Frame:
    """The zip around one contiguous tensor; `wrapped`: a list with the tensor in it."""
    whole = archive([spec] if wrapped else spec)
    payload = whole.payloads[0]
    head = b"".join(content for at, content in whole.fixed if at < payload)
    return Frame(head, b"".join(content for at, content in whole.fixed if at >= payload))


def saved(value: object) -> bytes:
    """`torch.save` of an object without tensors."""
    whole = archive(value)
    assert not whole.payloads, "a tensor's bytes come from elsewhere"
    return b"".join(content for _, content in whole.fixed)


def with_entry(content: bytes, key: str, value: object) -> bytes:
    """A file of `torch.save` that holds a dict, with `key` set to a plain `value`; nothing else is changed or built."""
    writer = _ZipWriter()
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        for info in whole.infolist():
            record, name = whole.read(info), info.filename.partition("/")[2]
            if name == "data.pkl":
                # The dict is on top of the stack when the pickle ends.
                record = record[:-1] + op.text(key) + op.plain(value) + op.SET_ITEM + op.STOP
            writer.add(name, record)
    writer.end()
    return b"".join(part for _, part in writer.fixed)


class _ZipWriter:
    """The bytes of a zip of uncompressed records, but for those of reserved records."""

    def __init__(self) -> None:
        self.fixed: list[tuple[int, bytes]] = []
        self.position = 0
        self._directory = bytearray()
        self._records = 0

    def add(self, name: str, content: bytes) -> None:
        self._header(name, len(content), zlib.crc32(content))
        self._write(content)

    def reserve(self, name: str, size: int) -> int:
        """The first byte of the record."""
        self._header(name, size, 0)
        begin = self.position
        self.position += size
        return begin

    def _write(self, content: bytes) -> None:
        self.fixed.append((self.position, content))
        self.position += len(content)

    def _header(self, name: str, size: int, crc: int) -> None:
        path, begin = f"archive/{name}".encode(), self.position
        wide = _wide(size, size) if size >= LIMIT_32 else b""
        padding = -(begin + LOCAL_HEADER.size + len(path) + len(wide) + 4) % ALIGNMENT
        extra = wide + PADDING + struct.pack("<H", padding) + b"Z" * padding
        version, said = (WIDE_VERSION if wide else 0), min(size, LIMIT_32)
        sizes = (crc, said, said, len(path))
        self._write(LOCAL_HEADER.pack(b"PK\x03\x04", version, 0, 0, 0, 0, *sizes, len(extra)) + path + extra)
        numbers = (size, size, begin) if wide else (begin,) if begin >= LIMIT_32 else ()
        extra = _wide(*numbers) if numbers else b""
        version, said_begin = (WIDE_VERSION if numbers else 0), (LIMIT_32 if numbers else begin)
        self._directory += CENTRAL_HEADER.pack(
            b"PK\x01\x02", version, version, 0, 0, 0, 0, *sizes, len(extra), 0, 0, 0, 0, said_begin
        )
        self._directory += path + extra
        self._records += 1

    def end(self) -> None:
        count, length, begin = self._records, len(self._directory), self.position
        self._write(bytes(self._directory))
        if begin >= LIMIT_32 or count >= LIMIT_16:
            after, version = self.position, WIDE_VERSION
            record = (WIDE_END.size - 12, version, version, 0, 0, count, count, length, begin)
            self._write(WIDE_END.pack(b"PK\x06\x06", *record) + LOCATOR.pack(b"PK\x06\x07", 0, after, 1))
        count, begin = min(count, LIMIT_16), min(begin, LIMIT_32)
        self._write(END.pack(b"PK\x05\x06", 0, 0, count, count, length, begin, 0))


def _wide(*numbers: int) -> bytes:
    """The extra field with those numbers that 32 bits do not hold."""
    return struct.pack(f"<HH{len(numbers)}Q", WIDE_FIELD, 8 * len(numbers), *numbers)


def _pickled(value: object, specs: list[TensorSpec]) -> bytes:
    """What pushes `value`; every `TensorSpec` in its dicts and lists becomes a tensor and is added to `specs`."""
    if isinstance(value, TensorSpec):
        specs.append(value)
        return _tensor(value, str(len(specs) - 1))
    if isinstance(value, dict):
        return op.mapping((op.plain(key), _pickled(entry, specs)) for key, entry in value.items())
    if isinstance(value, list):
        return op.items(_pickled(entry, specs) for entry in value)
    return op.plain(value)


def _tensor(spec: TensorSpec, key: str) -> bytes:
    """A contiguous tensor that is all of the storage `key`."""
    typed = spec.dtype in STORAGE_OF
    storage = op.name("torch", STORAGE_OF[spec.dtype]) if typed else op.name("torch.storage", "UntypedStorage")
    itemsize = CARRIER[spec.dtype].itemsize if typed else 1
    reference = [op.text("storage"), storage, op.text(key), op.text("cpu"), op.integer(spec.nbytes // itemsize)]
    return op.call(
        op.name("torch._utils", f"_rebuild_tensor_v{2 if typed else 3}"),
        op.sequence(reference) + b"Q",
        op.integer(0),
        op.integers(spec.shape),
        op.integers(row_major(spec.shape, 1)),
        op.FALSE,
        op.call(op.name("collections", "OrderedDict")),
        *(() if typed else (op.name("torch", spec.dtype),)),
    )


def read_file(path: Path, more: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """`read` of a whole file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read(descriptor, 0, os.fstat(descriptor).st_size, more)
    finally:
        os.close(descriptor)
