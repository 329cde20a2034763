"""A piece of a source → rows, in any process: the part of reading that runs in every worker. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np

from hf_bridge.data.media import Absent, Seen, with_media
from hf_bridge.data.recognise import Recognition, recognise
from hf_bridge.data.report import Report
from hf_bridge.data.row import Row
from swift_mega.base.readers import BadRow, Chunk, Unreadable, records


@dataclass(frozen=True)
class Piece:
    """A chunk as it goes into the cache.

    Attributes:
        rows: MessagePack, one row with its place (`file:line`) behind the other.
        lengths: bytes of each (int64).
        size: bytes of the source that this took.
        seen: media that were looked for.
    """

    rows: bytes
    lengths: np.ndarray
    size: int
    report: Report = field(default_factory=Report)
    seen: Seen = field(default_factory=dict)


def read_rows(chunk: Chunk, options: Recognition, report: Report) -> Iterator[Row]:
    """The good rows of a chunk; `report` counts those and the others."""
    for row, _ in _read(chunk, options, report, {}):
        yield row


def read_piece(chunk: Chunk, options: Recognition) -> Piece:
    """The good rows of a chunk as bytes."""
    report, seen = Report(), Seen()
    rows = [encoded for _, encoded in _read(chunk, options, report, seen)]
    return Piece(b"".join(rows), np.fromiter(map(len, rows), np.int64, len(rows)), chunk.size, report, seen)


def _read(chunk: Chunk, options: Recognition, report: Report, seen: Seen) -> Iterator[tuple[Row, bytes]]:
    for record in records(chunk):
        if isinstance(record, BadRow):
            report.bad.add([record])
            continue
        report.columns.update(record.values.keys())
        try:
            found = recognise(record.values, options)
            row = with_media(found.row, chunk.source, seen)
            encoded = _encoder.encode((row, record.where))
        except Unreadable as error:
            report.bad.add([BadRow(str(error), record.where)])
        except Absent as error:
            report.bad.add([BadRow(str(error), f"{record.where} ({error.path})")])
        except UnicodeEncodeError:
            report.bad.add([BadRow("half of a surrogate pair", record.where)])
        except (OverflowError, TypeError) as error:  # a number of more than 64 bits; a date from a table
            report.bad.add([BadRow(f"a value that cannot be kept: {error}", record.where)])
        else:
            report.formats[found.format] += 1
            report.unused.update(found.unused)
            yield row, encoded


_encoder = msgspec.msgpack.Encoder()
_options: Recognition | None = None
"""Of a worker process."""


def start_worker(options: Recognition) -> None:
    """Make this process ready for `read_piece_here`."""
    global _options
    _options = options


def read_piece_here(chunk: Chunk) -> Piece:
    """`read_piece` in a worker process."""
    assert _options is not None
    return read_piece(chunk, _options)
