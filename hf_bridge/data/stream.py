"""Rows of files too large to be read before the start: one after the other, without a cache and without a length.

Rows are shuffled within a window, as no more of them are in memory. Torch-free.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from hf_bridge.data.config import RowsConfig
from hf_bridge.data.reading import read_rows
from hf_bridge.data.report import Report
from hf_bridge.data.row import Row
from hf_bridge.data.rows import recognition, weights_of
from hf_bridge.data.sources import SourceName, parse_source
from swift_mega.base.errors import UserError

WINDOW_ROWS = 10_000


class RowStream:
    """The rows of `config.dataset`, read anew by every `iter`; `report` holds what the last one has found so far.

    Args:
        answers: False: questions without an answer will do.
        part, parts: of several processes that share the rows: this one gets every `parts`-th, from `part` on.
        window: rows among which one is drawn next.

    Raises:
        UserError: no data, or an option that needs all rows at once; while iterating, a bad row with `raise`.
    """

    def __init__(
        self,
        config: RowsConfig,
        *,
        answers: bool = True,
        part: int = 0,
        parts: int = 1,
        window: int = WINDOW_ROWS,
    ) -> None:
        self.config, self.answers, self.part, self.parts, self.window = config, answers, part, parts, window
        self.sources = list(map(parse_source, config.dataset))
        self.weights = weights_of(self.sources)
        self.report = Report()
        if not self.sources:
            raise UserError("`dataset` names no data.", "Give it a file or a data set: `--dataset data/chat.jsonl`.")
        if config.val_share or config.mix == "replacement":
            option = "`val_share`" if config.val_share else "`mix: replacement`"
            raise UserError(f"{option} needs all rows at once.", "Stream without it; give evaluation its own data.")
        if config.mix == "interleave" and config.stopping == "all_exhausted":
            raise UserError("a stream does not start over.", "Choose `--stopping first_exhausted`.")

    def __iter__(self) -> Iterator[Row]:
        self.report = Report()
        generator = np.random.default_rng(self.config.seed)
        sources = [self._rows(source) for source in self.sources]
        if self.config.mix == "interleave":
            rows = _interleaved(sources, self.weights, generator)
        else:
            rows = (row for source in sources for row in source)
        rows = islice(rows, self.part, None, self.parts)
        return _shuffled(rows, self.window, generator) if self.config.shuffle else rows

    def _rows(self, source: SourceName) -> Iterator[Row]:
        return islice(self._all_rows(source), source.count)

    def _all_rows(self, source: SourceName) -> Iterator[Row]:
        options = recognition(self.config, source, self.answers)
        for chunk in source.corpus(self.config.txt_documents).chunks():
            report = Report()
            rows = list(read_rows(chunk, options, report))
            self.report.add(report)
            report.bad.judge(self.config.on_bad_row)
            yield from rows


def _interleaved(
    sources: list[Iterator[Row]], weights: list[float] | None, generator: np.random.Generator
) -> Iterator[Row]:
    """Drawn by weight, until a source that has no row left is drawn."""
    chances = np.ones(len(sources)) if weights is None else np.asarray(weights)
    while True:
        try:
            yield next(sources[generator.choice(len(sources), p=chances / chances.sum())])
        except StopIteration:
            return


def _shuffled(rows: Iterator[Row], window: int, generator: np.random.Generator) -> Iterator[Row]:
    """One of the window at a time, whose place the next row takes."""
    waiting = list(islice(rows, window))
    for row in rows:
        number = int(generator.integers(len(waiting)))
        yield waiting[number]
        waiting[number] = row
    yield from (waiting[number] for number in generator.permutation(len(waiting)))
