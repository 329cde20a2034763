"""The files of all ranks of an older Megatron checkpoint as one address space.

Each tensor of each rank says which boxes it is; a box that several ranks have is taken from the first, and must be the
same, byte for byte, on the others.
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from converters.config_table import MegatronArguments
from converters.families._common import EMBEDDING, OUTPUT
from converters.family import sizes
from converters.key_forms import Part, canonical_space
from converters.ranks import cuts, first_layers, native_key, part_of, shared_axis
from converters.rules import Rule
from converters.space import Box, Placement, Space, Stored, row_major
from converters.stores.legacy import RankFile
from converters.stores.torch_dist import damaged
from converters.stores.torch_zip import TensorRecord
from converters.tensors import CARRIER, TensorSpec
from swift_mega.base.errors import UserError

COMPARED_BYTES = 1 << 23
ALL_RANKS = "Copy the folders of all ranks, and take config.json from the same model."


class Gathered(NamedTuple):
    """What the ranks have together."""

    space: Space
    """By canonical keys."""
    unknown: set[str]
    """Native keys without a place."""
    left_out: list[str]
    """Native keys of what is no tensor."""


def gathered(files: Sequence[RankFile], rules: Mapping[str, Rule], arguments: MegatronArguments) -> Gathered:
    """Find the place of every tensor of every rank.

    Raises:
        UserError: a tensor that is no part of what it should be, or that differs between ranks that both have it.
    """
    collector = _Collector(files, rules, arguments)
    firsts = first_layers(_layers_of_stages(files))
    experts = (arguments.num_moe_experts or 0) // (1 + max(file.rank.expert for file in files))
    for file in files:
        for virtual, chunk in enumerate(file.chunks):
            for name, record in chunk.items():
                native = native_key(name, firsts[file.rank.pipeline, virtual], file.rank.expert * experts)
                for key, own in collector.taken_apart(native, record, file):
                    collector.add(key, own, file)
    return collector.finished()


def _layers_of_stages(files: Sequence[RankFile]) -> list[list[int]]:
    """For each stage the number of layers in each of its virtual stages."""
    stages = {file.rank.pipeline: file for file in reversed(files)}
    return [[_layers(chunk) for chunk in stages[stage].chunks] for stage in sorted(stages)]


def _layers(chunk: Mapping[str, object]) -> int:
    numbers = {int(name.split(".")[2]) for name in chunk if name.startswith("decoder.layers.")}
    return 1 + max(numbers, default=-1)


class _Collector:
    """Takes the tensors of one rank after the other."""

    def __init__(self, files: Sequence[RankFile], rules: Mapping[str, Rule], arguments: MegatronArguments) -> None:
        self._rules = rules
        self._ranks = 1 + max(file.rank.tensor for file in files)
        own = sizes(arguments, _padded_vocab_size(files, arguments))
        self._shapes = {key: rule.shape(own) for key, rule in rules.items()}
        self._in_parts: dict[str, list[str]] = defaultdict(list)
        for key, rule in rules.items():
            if rule.operation.partial:
                self._in_parts[rule.whole].append(key)
        self._parts: dict[str, Part] = {}
        self._native: dict[str, Stored] = {}
        self._taken: dict[tuple[str, Box], Placement] = {}
        self._unknown: set[str] = set()
        self._left_out: list[str] = []

    def taken_apart(self, native: str, record: object, file: RankFile) -> Iterator[tuple[str, object]]:
        """The tensors that a rank has one below the other in one, each under its key; any other as it is."""
        keys = self._in_parts.get(native)
        if not keys or not isinstance(record, TensorRecord):
            yield native, record
            return
        rows, (have, *columns) = [self._shapes[key][0] for key in keys], record.spec.shape
        ranks = sum(rows) // (have or 1)
        if not 0 < ranks <= self._ranks or any(count % ranks for count in rows) or have * ranks != sum(rows):
            raise self._misfit(native, record, (sum(rows), *columns), file)
        begin = record.begin
        for key, count in zip(keys, rows, strict=True):
            spec = TensorSpec((count // ranks, *columns), record.spec.dtype)
            yield key, record._replace(spec=spec, begin=begin)
            begin += spec.nbytes

    @staticmethod
    def _misfit(native: str, record: TensorRecord, whole: Box, file: RankFile) -> UserError:
        return UserError(
            f"{file.path}: `{native}` is {list(record.spec.shape)}, with config.json the whole tensor is "
            f"{list(whole)}.",
            ALL_RANKS,
        )

    def add(self, native: str, record: object, file: RankFile) -> None:
        """Find the place of a tensor."""
        if not isinstance(record, TensorRecord):
            self._left_out.append(native)
            return
        part = part_of(native, self._shapes)
        if part is None and native == OUTPUT and EMBEDDING in self._shapes:
            # Tied: the last stage has a copy of its own.
            native, part = EMBEDDING, Part(EMBEDDING, (), None)
        if part is None:
            self._unknown.add(native)
            return
        whole = self._shapes[part.key][len(part.position) :]
        try:
            axis, count = shared_axis(whole, record.spec.shape, self._ranks)
        except ValueError:
            raise self._misfit(native, record, whole, file) from None
        if not record.contiguous:
            raise damaged(file.path, f"`{native}` does not lie row by row")
        stored = self._native.setdefault(native, Stored(TensorSpec(whole, record.spec.dtype), []))
        if stored.spec.dtype != record.spec.dtype:
            raise damaged(file.path, f"`{native}` is {record.spec.dtype}, and {stored.spec.dtype} on another rank")
        self._parts[native] = part
        strides = row_major(record.spec.shape, CARRIER[record.spec.dtype].itemsize)
        for cut in cuts(whole, axis, file.rank.tensor % count, count, self._rules[part.key].fragments):
            begin = record.begin + sum(first * stride for first, stride in zip(cut.within, strides, strict=True))
            self._take(native, stored, Placement(cut.offset, cut.shape, file.path, begin, strides))

    def _take(self, native: str, stored: Stored, placement: Placement) -> None:
        first = self._taken.get((native, placement.offset))
        if first is None:
            assert isinstance(stored.placements, list)
            stored.placements.append(placement)
            self._taken[native, placement.offset] = placement
            return
        nbytes = math.prod(placement.shape) * CARRIER[stored.spec.dtype].itemsize
        if first.shape != placement.shape or not _equal(first, placement, nbytes):
            raise UserError(
                f"`{native}` should be the same on all ranks that have it, but {placement.file} differs from "
                f"{first.file}.",
                "Something went wrong in the training that saved them; nothing was converted.",
            )

    def finished(self) -> Gathered:
        return Gathered(canonical_space(self._native, self._parts), self._unknown, self._left_out)


def _padded_vocab_size(files: Sequence[RankFile], arguments: MegatronArguments) -> int:
    """Rows of the embedding of all tensor-parallel ranks together."""
    found = (chunk.get(EMBEDDING) for file in files for chunk in file.chunks)
    rows = next((record.spec.shape[0] for record in found if isinstance(record, TensorRecord)), 0)
    ranks = 1 + max(file.rank.tensor for file in files)
    if 0 < rows * ranks < arguments.vocab_size:
        raise UserError(
            f"`{EMBEDDING}` has {rows} rows × {ranks} tensor-parallel ranks = {rows * ranks}, the vocabulary of "
            f"config.json {arguments.vocab_size}.",
            ALL_RANKS,
        )
    return rows * ranks or arguments.vocab_size


def _equal(one: Placement, other: Placement, nbytes: int) -> bool:
    """Whether two runs of bytes are the same, a few megabytes at a time."""
    assert one.file is not None and other.file is not None
    with one.file.open("rb") as ours, other.file.open("rb") as theirs:
        for first in range(0, nbytes, COMPARED_BYTES):
            count = min(COMPARED_BYTES, nbytes - first)
            if os.pread(ours.fileno(), count, one.begin + first) != os.pread(
                theirs.fileno(), count, other.begin + first
            ):
                return False
    return True
