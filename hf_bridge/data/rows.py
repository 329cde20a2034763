"""Rows of several sources as one sequence, and how it is made: `load_rows`. Torch-free.

Mixing, sampling and splitting move numbers of rows, 12 bytes each; the rows stay where they are on disk.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from hf_bridge.data.config import RowsConfig, Stopping
from hf_bridge.data.recognise import Recognition, column_names
from hf_bridge.data.report import Report
from hf_bridge.data.row import Row
from hf_bridge.data.self_cognition import identity
from hf_bridge.data.sources import SourceName, parse_source
from hf_bridge.data.store import Store, default_cache, stored
from swift_mega.base.console import say
from swift_mega.base.errors import UserError, nearest


class Rows(Sequence[Row]):
    """Rows by number, out of one source or several.

    Args:
        sources: what rows are taken from, each by its number.
        source: which source each row is from (int32).
        number: its number there (int64).
    """

    def __init__(self, sources: Sequence[Sequence[Row]], source: np.ndarray, number: np.ndarray) -> None:
        self.sources, self.source, self.number = sources, source, number

    @classmethod
    def all_of(cls, source: Sequence[Row]) -> "Rows":
        """Every row of one source, in order."""
        return cls([source], np.zeros(len(source), np.int32), np.arange(len(source)))

    def __len__(self) -> int:
        return len(self.number)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> "Rows": ...
    def __getitem__(self, number: "int | slice") -> "Row | Rows":
        if isinstance(number, slice):
            return self.take(np.arange(len(self))[number])
        return self.sources[int(self.source[number])][int(self.number[number])]

    def where(self, number: int) -> str:
        """The place that a row is from, `file:line`; of rows that are from no file, its number from 1."""
        source, own = self.sources[int(self.source[number])], int(self.number[number])
        return source.where(own) if isinstance(source, Store) else f"row {own + 1}"

    def take(self, numbers: np.ndarray) -> "Rows":
        """These rows, in this order; one may be there several times."""
        return Rows(self.sources, self.source[numbers], self.number[numbers])

    def shuffled(self, seed: int) -> "Rows":
        """The same rows in an order that follows from `seed`."""
        return self.take(np.random.default_rng(seed).permutation(len(self)))

    def sample(self, count: int, seed: int) -> "Rows":
        """`count` rows: none twice before all are there once; in the order of the source where all fit in."""
        whole, rest = divmod(count, len(self))
        some = np.sort(np.random.default_rng(seed).permutation(len(self))[:rest])
        return self.take(np.concatenate([np.tile(np.arange(len(self)), whole), some]))

    def split(self, share: float, seed: int) -> "tuple[Rows, Rows]":
        """What is left, and a share that is held out, which is the same rows for the same seed; both in order.

        Raises:
            UserError: one of them would be empty.
        """
        held_out = round(share * len(self))
        if not 0 < held_out < len(self):
            raise UserError(
                f"`val_share` {share} of {len(self)} rows holds out {held_out}.", "Both parts need at least one row."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[held_out:])), self.take(np.sort(order[:held_out]))


def concatenate(parts: Sequence[Rows]) -> Rows:
    """One behind the other."""
    sources = [source for part in parts for source in part.sources]
    offsets = np.cumsum([0, *(len(part.sources) for part in parts)], dtype=np.int32)
    source = [part.source + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Rows(sources, np.concatenate(source), np.concatenate([part.number for part in parts]))


def interleave(parts: Sequence[Rows], weights: Sequence[float] | None, stopping: Stopping, seed: int) -> Rows:
    """Row by row from a part that is drawn by weight; within a part in order, and from its start again at its end.

    Args:
        weights: need not add up to 1; None: all the same.
        stopping: `first_exhausted`: ends where a part that has no row left is drawn; `all_exhausted`: as soon as every
            part has given all its rows.

    Raises:
        UserError: a weight so small that this would take more than two thousand million draws.
    """
    chances = np.ones(len(parts)) if weights is None else np.asarray(weights, float)
    chances = chances / chances.sum()
    sizes = np.array([len(part) for part in parts])
    needed = (sizes / chances).max() if stopping == "all_exhausted" else 0
    if needed > 2**31:
        raise UserError(f"with these weights it takes {needed:,.0f} rows to use all up.", "Make them more alike.")
    generator, drawn = np.random.default_rng(seed), np.zeros(0, np.int64)
    while True:
        # Drawn in pieces, which gives the same as one by one.
        drawn = np.concatenate([drawn, generator.choice(len(parts), int(sizes.sum()), p=chances)])
        ends = [np.flatnonzero(drawn == part)[size - 1 : size + 1] for part, size in enumerate(sizes)]
        if stopping == "all_exhausted" and all(len(end) for end in ends):
            drawn = drawn[: max(int(end[0]) for end in ends) + 1]
            break
        if stopping == "first_exhausted" and any(len(end) == 2 for end in ends):
            drawn = drawn[: min(int(end[1]) for end in ends if len(end) == 2)]
            break
    whole, starts = concatenate(parts), np.cumsum(sizes) - sizes
    numbers = np.zeros(len(drawn), np.int64)
    for part, size in enumerate(sizes):
        here = np.flatnonzero(drawn == part)
        numbers[here] = starts[part] + np.arange(len(here)) % size
    return whole.take(numbers)


def replacement(parts: Sequence[Rows], weights: Sequence[float] | None, count: int, seed: int) -> Rows:
    """`count` rows, each from a part drawn by weight, and any of that part's rows."""
    chances = np.ones(len(parts)) if weights is None else np.asarray(weights, float)
    sizes = np.array([len(part) for part in parts])
    generator = np.random.default_rng(seed)
    drawn = generator.choice(len(parts), count, p=chances / chances.sum())
    return concatenate(parts).take((np.cumsum(sizes) - sizes)[drawn] + generator.integers(0, sizes[drawn]))


class Loaded(NamedTuple):
    """What `load_rows` gives: rows to train on, to evaluate on, and what was found while reading."""

    train: Rows
    valid: Rows | None
    report: Report


def load_rows(config: RowsConfig, *, answers: bool = True) -> Loaded:
    """Read, check, mix and split what `config` names; what was left out is said, and with `raise` ends it.

    Args:
        answers: False: questions without an answer will do, as for methods whose model answers itself.

    Raises:
        UserError: no data, a source that cannot be read, bad rows, columns or weights that make no sense.
    """
    if not config.dataset:
        raise UserError("`dataset` names no data.", "Give it a file or a data set: `--dataset data/chat.jsonl`.")
    if config.val_dataset and config.val_share:
        raise UserError("both `val_dataset` and `val_share` are given.", "Choose one of them.")
    report = Report()
    rows = _mixed(config, _read(config, config.dataset, answers, report))
    valid = None
    if config.val_dataset:
        valid = concatenate([part for _, part in _read(config, config.val_dataset, answers, report)])
    _check_columns(config, report)
    if config.val_share:
        rows, valid = rows.split(config.val_share, config.seed)
    return Loaded(rows.shuffled(config.seed) if config.shuffle else rows, valid, report)


def recognition(config: RowsConfig, source: SourceName, answers: bool) -> Recognition:
    """How the rows of a source are read.

    Raises:
        UserError: names of columns that make no sense, or self-cognition of a model without a name.
    """
    who = identity(config.model_name, config.model_author)
    if source.self_cognition and who is None:
        raise UserError(
            f"`{source.text}` teaches a model who it is, and that is not said.",
            "Give `--model-name` and `--model-author`.",
        )
    given = column_names(config.columns)
    known = {theirs: ours for theirs, ours in source.columns.items() if ours not in dict(given).values()}
    columns = (*given, *((theirs, ours) for theirs, ours in known.items() if theirs not in dict(given)))
    return Recognition(columns, config.strict_columns, answers, tuple(config.keep_columns), who)


def _read(config: RowsConfig, names: list[str], answers: bool, report: Report) -> list[tuple[SourceName, Rows]]:
    """The rows of each source, and in `report` what was found."""
    cache = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache()
    parts = []
    for source in map(parse_source, names):
        options = recognition(config, source, answers)
        store = stored(source.corpus(config.txt_documents), options, cache, config.workers)
        report.add(store.report)
        if config.on_bad_row == "skip" or not store.report.bad.reasons:
            say(f"{source.text}: {store.report}")
        store.report.bad.judge(config.on_bad_row)
        if not len(store):
            raise UserError(f"{source.text} has no rows.", "Leave it out, or mend it.")
        rows = Rows.all_of(store)
        parts.append((source, rows.sample(source.count, config.seed) if source.count else rows))
    return parts


def _mixed(config: RowsConfig, parts: list[tuple[SourceName, Rows]]) -> Rows:
    rows, weights = [part for _, part in parts], weights_of([source for source, _ in parts])
    if (config.rows is not None) != (config.mix == "replacement"):
        raise UserError(
            f"`rows` is {config.rows} and `mix` is `{config.mix}`.",
            "`replacement` needs `rows`, and nothing else does.",
        )
    if config.mix == "interleave":
        return interleave(rows, weights, config.stopping, config.seed)
    if config.mix == "replacement" and config.rows:
        return replacement(rows, weights, config.rows, config.seed)
    if weights:
        raise UserError(
            "sources have weights, and `mix` is `concatenate`, which takes all rows.",
            "Choose `--mix interleave`, or give numbers of rows (`#2000`).",
        )
    return concatenate(rows)


def weights_of(sources: list[SourceName]) -> list[float] | None:
    """Their weights; None where none has one.

    Raises:
        UserError: some have one and some have not.
    """
    weights = [source.weight for source in sources if source.weight is not None]
    if 0 < len(weights) < len(sources):
        bare = next(source.text for source in sources if source.weight is None)
        raise UserError(
            f"`{bare}` has no weight while others have one.", f"Write `WEIGHT {bare}`, or drop all weights."
        )
    return weights or None


def _check_columns(config: RowsConfig, report: Report) -> None:
    """What was asked for by name has to be in some row."""
    for option, names in (
        ("columns", [theirs for theirs, _ in column_names(config.columns)]),
        ("keep-columns", config.keep_columns),
    ):
        for name in names:
            if name not in report.columns:
                raise UserError(f"`--{option}`: no row has a column `{name}`.", nearest(name, report.columns))
