"""What lies in a checkpoint folder, as lines of text."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from converters import checkpoint
from converters.adapters import WEIGHTS, is_peft
from converters.opening import open_source
from converters.parameters import Parameters, parameters
from converters.stores import gguf_file, legacy, safetensors, torch_dist
from converters.stores.torch_zip import TensorRecord
from converters.tensors import TensorSpec
from swift_mega.base.console import counted, sized
from swift_mega.base.errors import UserError

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=_)\d+(?=[_/])")
"""Of a layer, an expert or a rank."""


class Entry(NamedTuple):
    """A tensor and how it is stored."""

    spec: TensorSpec
    grid: tuple[int, ...] = ()
    """Chunks along each axis."""
    blocks: int | None = None
    """Bytes in the file, where its numbers are packed into blocks (GGUF)."""

    @property
    def nbytes(self) -> int:
        """In the file."""
        return self.spec.nbytes if self.blocks is None else self.blocks


def contents(path: Path, every: bool = False, config: Path | None = None) -> Iterator[str]:
    """The lines of `convert inspect`.

    Args:
        path: folder or file.
        every: one line for each tensor, instead of one for those that differ by numbers in their names only.
        config: a folder with config.json, where the checkpoint has none.

    Raises:
        UserError: nothing that is known, or damaged.
    """
    kind, entries, files = _entries(path)
    groups: dict[tuple[str, Entry], int] = defaultdict(int)
    for name, entry in entries.items():
        groups[name if every else NUMBER.sub("*", name), entry] += 1
    width = max((len(name) for name, _ in groups), default=0)
    yield f"{path}: {kind}"
    for (name, entry), count in groups.items():
        shape = " × ".join(map(str, entry.spec.shape)) or "scalar"
        chunks = f"  in {' × '.join(map(str, entry.grid))} chunks" if math.prod(entry.grid) > 1 else ""
        times = f"{count:>6,} ×" if count > 1 else " " * 8
        size = sized(count * entry.nbytes)
        yield f"  {times} {name:<{width}}  {size:>7}  {entry.spec.dtype:<8}  {shape}{chunks}"
    dtypes = Counter[str]()
    for entry in entries.values():
        dtypes[entry.spec.dtype] += math.prod(entry.spec.shape)
    by_dtype = ", ".join(f"{count:,} {dtype}" for dtype, count in dtypes.most_common())
    nbytes = sum(entry.nbytes for entry in entries.values())
    tensors = counted(len(entries), "tensor")
    yield f"  {tensors}, {by_dtype} elements, {sized(nbytes)} in {counted(files, 'file')}"
    yield f"  {_parameters(path, config)}"


def _parameters(path: Path, config: Path | None) -> str:
    """What of this are parameters; or why that is not known."""
    if is_peft(path) and (path / WEIGHTS).is_file():  # all of it; of the base, which may be anywhere, nothing is asked
        places = safetensors.read_header(path / WEIGHTS)
        return str(Parameters(sum(math.prod(place.spec.shape) for place in places.values()), 0, 0))
    try:
        return str(parameters(open_source(path, config=config)))
    except UserError as error:
        return f"parameters are not counted: {error.what}"


def _entries(path: Path) -> tuple[str, Mapping[str, Entry], int]:
    if path.suffix == gguf_file.SUFFIX and path.is_file():
        file = gguf_file.GgufFile(path)
        found = {
            name: Entry(stored.spec, blocks=int(file.tensors[name].n_bytes))
            for name, stored in file.own_space().items()
        }
        return f"GGUF file of architecture {file.architecture}, as it is read", found, len(file.paths)
    if ranks := legacy.find(path):
        saved = legacy.open_ranks(ranks)
        found = {
            f"{file.path.parent.name}/{name}": Entry(record.spec)
            for file in saved
            for chunk in file.chunks
            for name, record in chunk.items()
            if isinstance(record, TensorRecord)
        }
        return (
            f"Megatron checkpoint {ranks.name} with {counted(len(saved), 'file')}, one for each rank",
            found,
            len(saved),
        )
    if checkpoint.is_megatron(path) or (path / torch_dist.METADATA).is_file():
        folder = checkpoint.latest(path) if checkpoint.is_megatron(path) else path
        stored = torch_dist.open_distributed(folder)
        entries = {
            key: Entry(
                spec,
                tuple(
                    len({offset[axis] for offset, _, _ in stored.listing.chunks[key]})
                    for axis in range(len(spec.shape))
                ),
            )
            for key, spec in sorted(stored.tensors.items())
        }
        files = {blob.file for chunks in stored.listing.chunks.values() for _, _, blob in chunks}
        kind = f"distributed checkpoint {folder.name}, {counted(len(stored.objects), 'object')} besides"
        return kind, entries, len(files)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise UserError(f"{path} {what}.", "Give a Hugging Face folder, a checkpoint or a GGUF file.")
    if is_peft(path) and (path / WEIGHTS).is_file():
        places = safetensors.read_header(path / WEIGHTS)
        return "PEFT adapter", {name: Entry(place.spec) for name, place in places.items()}, 1
    store = safetensors.open_folder(path)
    entries = {name: Entry(spec) for name, spec in store.tensors.items()}
    return "Hugging Face folder", entries, len({place.file for place in store.places.values()})
