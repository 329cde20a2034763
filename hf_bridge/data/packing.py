"""Packing: several short rows in one sequence, and what keeps them apart in attention.

`pack` decides which rows share a sequence, from their lengths alone; `join` lays one out. Positions start again with
every row, and `segments` number the rows, from which `attention_mask` makes the mask for SDPA and eager attention;
flash-attention takes the ends of the rows instead. Torch-free.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swift_mega.base.errors import UserError


@dataclass(frozen=True)
class Packing:
    """Which rows share a sequence.

    Attributes:
        capacity: tokens that a sequence holds.
        rows: numbers of rows, sequence after sequence (int64).
        ends: where each sequence ends in `rows` (int64).
        tokens: of all rows together.
    """

    capacity: int
    rows: np.ndarray
    ends: np.ndarray
    tokens: int

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> np.ndarray:
        """The rows of one sequence."""
        return np.split(self.rows[: self.ends[number]], [self.ends[number - 1] if number else 0])[1]

    @property
    def fill(self) -> float:
        """Share of all positions that hold a token."""
        return self.tokens / (self.capacity * len(self)) if len(self) else 1.0


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> Packing:
    """Best fit, longest first: each row goes into the fullest sequence that has room for it.

    Rows of one length are placed together: after the first of them the same sequence is still the fullest with room,
    until none is left in it. So the cost grows with the number of rows and of spaces, not with their product.
    The order among equals is that of the rows, so the outcome depends on nothing but the lengths.

    Args:
        lengths: tokens of each row.
        capacity: tokens that a sequence holds.

    Raises:
        UserError: a row that is longer than a sequence, or has no token.
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) and not 0 < sizes.min() <= sizes.max() <= capacity:
        worst = int(sizes.argmax() if sizes.max() > capacity else sizes.argmin())
        raise UserError(
            f"row {worst} has {sizes[worst]:,} tokens; a packed sequence takes 1 to {capacity:,}.",
            "Truncate, split or leave out such rows first.",
        )
    sequences, open_ones = list[list[int]](), _Open()
    order = np.argsort(-sizes, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1) if len(order) else []:
        length, rows, placed = int(sizes[group[0]]), group.tolist(), 0
        while placed < len(rows):
            number, space = open_ones.tightest(length) or (len(sequences), capacity)
            if number == len(sequences):
                sequences.append([])
            fitting = rows[placed : placed + space // length]
            sequences[number] += fitting
            open_ones.add(number, space - length * len(fitting))
            placed += len(fitting)
    ends = np.cumsum([len(rows) for rows in sequences], dtype=np.int64)
    flat = np.fromiter((row for rows in sequences for row in rows), np.int64, len(sizes))
    return Packing(capacity, flat, ends, int(sizes.sum()))


class _Open:
    """Sequences that have room left, by how much."""

    def __init__(self) -> None:
        self.by_space: dict[int, list[int]] = {}
        self.spaces: list[int] = []
        """The keys of `by_space`, sorted."""

    def add(self, number: int, space: int) -> None:
        if space and space not in self.by_space:
            insort(self.spaces, space)
        self.by_space.setdefault(space, []).append(number)

    def tightest(self, length: int) -> tuple[int, int] | None:
        """A sequence with the least space that `length` goes into, and that space; it is no longer among these."""
        found = bisect_left(self.spaces, length)
        if found == len(self.spaces):
            return None
        space = self.spaces[found]
        number = self.by_space[space].pop()
        if not self.by_space[space]:
            del self.by_space[space], self.spaces[found]
        return number, space


@dataclass(frozen=True)
class Joined:
    """Rows one behind the other; all arrays are int64 of the length of the sequence.

    Attributes:
        positions: count from 0 in every row.
        segments: number of the row, from 1; 0 is padding.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray


def join(rows: Sequence[Sequence[int] | np.ndarray], length: int, pad: int) -> Joined:
    """One sequence of `length` with `rows` in it and `pad` behind them.

    Raises:
        UserError: the rows are longer than that together.
    """
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    used = int(sizes.sum())
    if used > length:
        raise UserError(f"{used:,} tokens do not go into a sequence of {length:,}.", "Pack with its length.")
    tokens, positions, segments = np.full(length, pad, np.int64), np.zeros(length, np.int64), np.zeros(length, np.int64)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    if used:
        tokens[:used] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    positions[:used] = np.arange(used) - starts
    segments[:used] = np.repeat(np.arange(1, len(rows) + 1), sizes)
    return Joined(tokens, positions, segments)


def attention_mask(segments: np.ndarray) -> np.ndarray:
    """[S] segments → [S, S] bool, True where the query (row) sees the key (column): earlier tokens of its own row.

    Padding sees itself, as a query that sees nothing has no softmax.
    """
    same = segments[:, None] == segments[None, :]
    seen: np.ndarray = np.tril(same & (segments != 0)[:, None]) | np.eye(len(segments), dtype=bool)
    return seen
