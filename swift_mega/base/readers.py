"""Texts or whole rows out of files, in order, with the place of each and a report of what could not be read.

Reading is split in two so that a process pool can share the work: `Corpus.chunks` cuts the inputs into
pieces of about half a megabyte, cheaply and in one process; `texts` or `records` decodes a chunk, anywhere.

    .jsonl .json (.gz .zst)              one JSON object a line (`.json` may also be one list)
    .csv .tsv (.gz .zst)                 columns that the first line names
    .parquet .arrow                      columns; of texts one, of strings
    .txt (.gz .zst)                      one document a file, or a paragraph or line: `txt_documents`
    org/name, hf::org/name, ms::…        a data set on Hugging Face or ModelScope

Torch-free.
"""

import csv
import functools
import glob
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from swift_mega.base.console import counted
from swift_mega.base.errors import UserError
from swift_mega.base.hub import PREFIXES, is_id, load_dataset
from swift_mega.base.reading import read_errors_are_the_users

CHUNK_BYTES = 1 << 19
"""Per piece of work: large against the cost of sending it to another process, small against a progress bar."""

SHOWN_BAD_ROWS = 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED = (".gz", ".zst")
STRINGS = ("string", "large_string", "string_view")
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
NOT_DATA = ("dataset_info.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside the `.arrow` files of a folder."""

TxtDocuments = Literal["file", "paragraph", "line"]
OnBadRow = Literal["raise", "skip"]
Kind = Literal["json", "text", "table"]
T = TypeVar("T")


class Text(NamedTuple):
    """One document and the place it came from (`file:line`)."""

    text: str
    where: str


class Record(NamedTuple):
    """A whole row by its columns, and the place it came from (`file:line`)."""

    values: dict[str, Any]
    where: str


class BadRow(NamedTuple):
    """A row that does not hold what it should, and why."""

    reason: str
    where: str


class Unreadable(Exception):
    """Why a row does not hold what it should."""


@dataclass
class BadRows:
    """What was left out: how many rows for each reason, and where the first twenty are."""

    reasons: Counter[str] = field(default_factory=Counter)
    first: list[BadRow] = field(default_factory=list)

    def add(self, rows: list[BadRow]) -> None:
        self.reasons.update(row.reason for row in rows)
        self.first.extend(rows[: max(0, SHOWN_BAD_ROWS - len(self.first))])

    def __str__(self) -> str:
        return self.report()

    def report(self, what: str = "bad row") -> str:
        """All of it; one line where there is one reason.

        Args:
            what: are counted.
        """
        total, counts = self.reasons.total(), self.reasons.most_common()
        head = f"{counted(total, what)}:"
        if len(counts) == 1:
            more = f" and {total - len(self.first):,} more" if total > len(self.first) else ""
            return f"{head} {_places(self.first)}{more}: {counts[0][0]}"
        lines = [f"  {count:>8}  {reason}" for reason, count in counts]
        places = [f"  {row.where}: {row.reason}" for row in self.first]
        return "\n".join([head, *lines, f"the first {len(places)}:", *places])

    def judge(self, policy: OnBadRow) -> None:
        """Raise a UserError that holds the report, if there are bad rows and the policy says so."""
        if policy == "raise" and self.reasons:
            raise UserError(str(self), "Mend these rows, or leave them out and have them counted: `--on-bad-row skip`.")


def _places(rows: list[BadRow]) -> str:
    """`a.jsonl:2, 5; b.jsonl:1`."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        source, colon, line = row.where.rpartition(":")
        lines.setdefault(source + colon, []).append(line)
    return "; ".join(source + ", ".join(found) for source, found in lines.items())


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one source, not yet decoded; small enough to send to another process.

    Attributes:
        source: file or data set, for messages.
        first: number of the first row, from 1.
        kind: `json`: each row is an object; `text`: each row is a text; `table`: all are one Arrow stream.
        rows: UTF-8 bytes of each row; None where a column holds null. One `bytes` object is lines, with their ends.
        size: bytes of the source that were read for it.
        bad: numbers of rows that could not even be cut out of the source, and why; their bytes are empty.
    """

    source: str
    first: int
    kind: Kind
    rows: bytes | list[bytes | None]
    size: int
    bad: dict[int, str] = field(default_factory=dict)


class Source(Protocol):
    """A file or a data set."""

    name: str
    bytes: int
    files: list[Path]
    """Where its bytes lie on this machine."""

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order."""

    def sha256(self) -> str:
        """Checksum of the bytes that are read."""


def texts(chunk: Chunk, text_key: str) -> Iterator[Text | BadRow]:
    """Every row of `chunk` as a text or a bad row. Blank lines of a JSONL file are no rows."""
    decode = _text if chunk.kind == "text" else functools.partial(_json_text, key=text_key)
    for row, where in _decoded(chunk, _rows(chunk), decode):
        yield BadRow(row.reason, where) if isinstance(row, _Bad) else Text(row, where)


def records(chunk: Chunk) -> Iterator[Record | BadRow]:
    """Every row of `chunk` with all its columns, or a bad row. A text is a row with the one column `text`."""
    if chunk.kind == "table":
        rows: Any = _table_rows(chunk.rows)
        decode: Callable[[Any], dict[str, Any]] = _whole
    else:
        rows, decode = _rows(chunk), _json_object if chunk.kind == "json" else _text_object
    for row, where in _decoded(chunk, rows, decode):
        yield BadRow(row.reason, where) if isinstance(row, _Bad) else Record(row, where)


class _Bad(NamedTuple):
    reason: str


def _decoded(chunk: Chunk, rows: Any, decode: Callable[[Any], T]) -> Iterator[tuple[T | _Bad, str]]:
    """What `decode` makes of each row, and its place."""
    for number, row in enumerate(rows, chunk.first):
        where = f"{chunk.source}:{number}"
        if number in chunk.bad:
            yield _Bad(chunk.bad[number]), where
        elif chunk.kind == "json" and row is not None and not row.strip():
            continue
        else:
            try:
                yield decode(row), where
            except Unreadable as error:
                yield _Bad(str(error)), where


def _rows(chunk: Chunk) -> list[Any]:
    return list(_lines(chunk.rows)) if isinstance(chunk.rows, bytes) else chunk.rows


def _lines(rows: bytes) -> list[bytes]:
    return rows.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")


def _text(row: bytes | None) -> str:
    if row is None:
        raise Unreadable("null instead of text")
    try:
        return row.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("not UTF-8") from None


def _json_text(row: bytes | None, key: str) -> str:
    """The string under `key`. The common case costs one pass of a C parser over the line.

    Raises:
        Unreadable: with the reason.
    """
    try:
        return str(_decoder(key).decode(row or b"").text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _slow_json_text(_text(row), key)


@functools.cache
def _decoder(key: str) -> msgspec.json.Decoder[Any]:
    """A parser that keeps one field and skips the others unread."""
    return msgspec.json.Decoder(msgspec.defstruct("Row", [("text", str)], rename={"text": key}))


def _slow_json_text(row: str, key: str) -> str:
    """As `_json_text` with Python's parser, which also takes the NaN that Python writes, and tells mistakes apart."""
    try:
        value = json.loads(row)
    except (ValueError, RecursionError):
        raise Unreadable("not valid JSON") from None
    if not isinstance(value, dict):
        raise Unreadable("not a JSON object")
    if key not in value:
        raise Unreadable(no_key(key))
    if not isinstance(value[key], str):
        raise Unreadable(f"`{key}` is not a string")
    if any("\ud800" <= character <= "\udfff" for character in value[key]):
        raise Unreadable(f"`{key}` holds half of a surrogate pair")
    return str(value[key])


def _json_object(row: bytes | None) -> dict[str, Any]:
    """All of a row.

    Raises:
        Unreadable: with the reason.
    """
    try:
        value = msgspec.json.decode(row or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            value = json.loads(_text(row))  # also takes the NaN that Python writes
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Unreadable("half of a surrogate pair") from None
        except (ValueError, RecursionError):
            raise Unreadable("not valid JSON") from None
    if not isinstance(value, dict):
        raise Unreadable("not a JSON object")
    return value


def _text_object(row: bytes | None) -> dict[str, Any]:
    return {"text": _text(row)}


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _table_rows(stream: Any) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow stream without fields that are null: Arrow knows no other way to say that one is absent."""
    import pyarrow as pa

    for row in pa.ipc.open_stream(stream).read_all().to_pylist():
        yield _without_null(row)


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(inner) for name, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def no_key(key: str) -> str:
    """The reason of a bad row that has others."""
    return f"no key `{key}`"


def first_keys(chunk: Chunk) -> list[str]:
    """The keys of the first row of a chunk of JSON objects."""
    first = next(row for row in _rows(chunk) if row and row.strip())
    return list(json.loads(first))


class Corpus:
    """The rows of many inputs, one after the other.

    Args:
        inputs: files, folders, globs, data set ids; what each glob and folder finds is sorted by name.
        text_key: key or column of the text; None: whole rows are wanted, to be read with `records`.
        txt_documents: what a document is in a `.txt` file.
        subset, split: of data sets on a hub.

    Raises:
        UserError: an input that is not there, or of a format not known.
    """

    def __init__(
        self,
        inputs: list[str],
        *,
        text_key: str | None = "text",
        txt_documents: TxtDocuments = "file",
        subset: str | None = None,
        split: str = "train",
    ) -> None:
        self.text_key = text_key
        self.txt_documents = txt_documents
        self.sources: list[Source] = []
        for name in inputs:
            with read_errors_are_the_users(name):
                found = find_files(name)
                files = [open_file(path, text_key, txt_documents) for path in found or []]
            self.sources += [HubDataset(name, text_key, subset, split)] if found is None else files

    @property
    def bytes(self) -> int:
        """Of all sources, as stored."""
        return sum(source.bytes for source in self.sources)

    def chunks(self) -> Iterator[Chunk]:
        """All rows in order."""
        for source in self.sources:
            yield from source.chunks()

    def texts(self, bad_rows: BadRows, on_bad_row: OnBadRow = "raise") -> Iterator[Text]:
        """All texts in order; bad rows go to `bad_rows`, and with `raise` end the reading at once."""
        assert self.text_key is not None
        for chunk in self.chunks():
            for row in texts(chunk, self.text_key):
                if isinstance(row, BadRow):
                    bad_rows.add([row])
                    bad_rows.judge(on_bad_row)
                else:
                    yield row


def find_files(name: str) -> list[Path] | None:
    """The files that an input means; None for the id of a data set on a hub."""
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_input(file.relative_to(path)) and file.is_file())
    elif any(character in name for character in "*?["):
        found = sorted(Path(file) for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
    elif name.startswith(PREFIXES) or (is_id(name) and not path.suffix[1:].isalpha()):  # `org/texts-1.0` is an id
        return None
    else:
        found = []
    if not found:
        raise UserError(
            f"`{name}` is no file, and no folder or pattern that holds one.", f"Formats: {', '.join(FORMATS)}."
        )
    return found


def _is_input(path: Path) -> bool:
    """By name. Hidden ones are not, as a glob has it: editors and notebooks keep second copies there."""
    hidden = any(part.startswith(".") for part in path.parts)
    return _format(path) in FORMATS and path.name not in NOT_DATA and not hidden


def open_file(path: Path, text_key: str | None, txt_documents: TxtDocuments) -> Source:
    """The reader for the format that the name of `path` says."""
    kind = _format(path)
    if kind in TABLES:
        return TABLES[kind](path, text_key)
    if kind in DELIMITERS:
        return DelimitedFile(path, DELIMITERS[kind])
    if kind == ".txt":
        return LinesFile(path, "text") if txt_documents == "line" else TextFile(path, txt_documents)
    if kind == ".json" and _starts_with_list(path):
        return JsonList(path)
    if kind in (".jsonl", ".json"):
        return LinesFile(path, "json")
    raise UserError(
        f"{path}: the format `{path.suffix}` is not known.", f"Known: {', '.join(FORMATS)}, also with .gz or .zst."
    )


def _format(path: Path) -> str:
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file as stored, for its position, and its content, decompressed where the name says so.

    Raises:
        UserError: it cannot be read, or is compressed and damaged or cut short.
    """
    with read_errors_are_the_users(path):
        stored = path.open("rb")
    try:
        with stored, _decompressed(path, stored) as content:
            yield stored, content
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} cannot be read to its end: {error}.", "Fetch the file again.") from None


def _decompressed(path: Path, stored: BinaryIO) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=stored))
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(stored, compression="zstd"))
    return stored


def _starts_with_list(path: Path) -> bool:
    with _opened(path) as (_, content):
        return content.read(64).removeprefix(BYTE_ORDER_MARK).lstrip()[:1] == b"["


@dataclass
class _File:
    """What all files have in common."""

    path: Path

    def __post_init__(self) -> None:
        self.name = str(self.path)
        self.files = [self.path]
        self.bytes = self.path.stat().st_size

    def sha256(self) -> str:
        with read_errors_are_the_users(self.path), self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _blocks(self, size: int) -> Iterator[tuple[bytes, int]]:
        """The content in blocks of `size` that end with a line, and the stored bytes read for each.

        Raises:
            UserError: a compressed file that is damaged or cut short.
        """
        with _opened(self.path) as (stored, content):
            done = 0
            while block := content.read(size):
                if not block.endswith(b"\n"):
                    block += content.readline()
                yield block if done else block.removeprefix(BYTE_ORDER_MARK), stored.tell() - done
                done = stored.tell()


@dataclass
class LinesFile(_File):
    """One row a line."""

    kind: Kind

    def chunks(self) -> Iterator[Chunk]:
        first = 1
        for block, size in self._blocks(CHUNK_BYTES):
            yield Chunk(self.name, first, self.kind, block, size)
            first += block.count(b"\n")


@dataclass
class TextFile(_File):
    """Documents of many lines: the whole file, or its paragraphs (parted by blank lines)."""

    documents: Literal["file", "paragraph"]

    def chunks(self) -> Iterator[Chunk]:
        content = b"".join(block for block, _ in self._blocks(CHUNK_BYTES))
        if self.documents == "file":
            yield Chunk(self.name, 1, "text", [content], self.bytes)
            return
        paragraphs = [lines.strip(b"\n") for lines in re.split(rb"\n\s*\n", content.replace(b"\r\n", b"\n"))]
        rows: list[bytes | None] = [lines for lines in paragraphs if lines.strip()]
        yield from _in_chunks(self.name, "text", rows, self.bytes)


@dataclass
class JsonList(_File):
    """One JSON list of objects; the place of a row is its number in the list."""

    def chunks(self) -> Iterator[Chunk]:
        content = b"".join(block for block, _ in self._blocks(CHUNK_BYTES))
        try:
            rows = msgspec.json.decode(content, type=list[msgspec.Raw])
        except (msgspec.DecodeError, RecursionError) as error:
            raise UserError(
                f"{self.path} is not valid JSON: {error}.", "Mend it, or write one object a line."
            ) from None
        yield from _in_chunks(self.name, "json", [bytes(row) for row in rows], self.bytes)


DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass
class DelimitedFile(_File):
    """Columns that the first line names; every value is a string, and the place of a row is the line it begins at.

    Raises:
        UserError: not UTF-8, a quote that is never closed, two columns of one name, no line at all.
    """

    delimiter: str

    def chunks(self) -> Iterator[Chunk]:
        csv.field_size_limit(2**31 - 1)  # the module's own limit, 128 kB, is less than a document
        with _opened(self.path) as (stored, content):
            lines = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            try:
                yield from self._cut(reader, stored)
            except (csv.Error, UnicodeDecodeError) as error:
                raise UserError(
                    f"{self.path} cannot be read after line {reader.line_num}: {error}.",
                    "Mend it, or write JSONL.",
                ) from None

    def _cut(self, reader: Any, stored: BinaryIO) -> Iterator[Chunk]:
        columns = self._columns(next(reader, []))
        first, done, size = reader.line_num + 1, 0, 0
        rows: list[bytes | None] = []
        bad: dict[int, str] = {}
        for values in reader:
            row, line = b"", first + len(rows)
            if len(values) == len(columns):
                row = msgspec.json.encode(dict(zip(columns, values, strict=True)))
            elif values:
                bad[line] = f"{counted(len(values), 'value')} for {counted(len(columns), 'column')}"
            rows += [row] + [b""] * (reader.line_num - line)
            size += len(row)
            if size >= CHUNK_BYTES:
                yield Chunk(self.name, first, "json", rows, stored.tell() - done, bad)
                first, done, size, rows, bad = reader.line_num + 1, stored.tell(), 0, [], {}
        yield Chunk(self.name, first, "json", rows, self.bytes - done, bad)

    def _columns(self, names: list[str]) -> list[str]:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice or not names:
            wrong = f"has two columns `{twice[0]}`" if twice else "is empty"
            raise UserError(f"{self.path} {wrong}.", "Its first line has to name the columns.")
        return names


@dataclass
class ArrowTable(_File):
    """A file of columns: one of them as texts, or all of them."""

    column: str | None

    def chunks(self) -> Iterator[Chunk]:
        import pyarrow as pa

        with read_errors_are_the_users(self.path), self.path.open("rb"):
            pass  # Arrow would call it damaged
        try:
            rows, schema, batches = self._open()
            if self.column is not None:
                _check_column(self.name, self.column, schema)
            yield from _table_chunks(self.name, self.column, batches, self.bytes, rows)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path} cannot be read as {self.format}: {error}.", "Fetch the file again.") from None

    format = ""

    def _open(self) -> tuple[int, Any, Iterator[Any]]:
        """Number of rows, schema, and record batches of the wanted columns."""
        raise NotImplementedError


class ParquetFile(ArrowTable):
    """A Parquet file."""

    format = "Parquet"

    def _open(self) -> tuple[int, Any, Iterator[Any]]:
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self.path)
        columns = None if self.column is None else [self.column]
        return file.metadata.num_rows, file.schema_arrow, file.iter_batches(batch_size=TABLE_ROWS, columns=columns)


class ArrowFile(ArrowTable):
    """An Arrow file, or the Arrow stream that `datasets` writes."""

    format = "Arrow"

    def _open(self) -> tuple[int, Any, Iterator[Any]]:
        import pyarrow as pa

        mapped = pa.memory_map(str(self.path))
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        table = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped).read_all()
        wanted = table if self.column is None or self.column not in table.schema.names else table.select([self.column])
        return table.num_rows, table.schema, iter(wanted.to_batches(TABLE_ROWS))


TABLES: dict[str, type[ArrowTable]] = {".parquet": ParquetFile, ".arrow": ArrowFile}
TABLE_ROWS = 1024


def _table_chunks(name: str, column: str | None, batches: Iterator[Any], size: int, rows: int) -> Iterator[Chunk]:
    """Record batches as chunks; `size` bytes are shared out over `rows`."""
    import pyarrow as pa

    first = 1
    for batch in batches:
        count = batch.num_rows
        if column is not None:
            texts_of = batch.column(0).cast(pa.binary()).to_pylist()
            yield Chunk(name, first, "text", texts_of, size * count // max(1, rows))
        else:
            step = max(1, count * CHUNK_BYTES // max(1, batch.nbytes))
            for start in range(0, count, step):
                part = batch.slice(start, step)
                yield Chunk(name, first + start, "table", _stream(part), size * part.num_rows // max(1, rows))
        first += count


def _stream(batch: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


class HubDataset:
    """A data set on Hugging Face (`org/name`) or ModelScope (`ms::org/name`)."""

    def __init__(self, name: str, column: str | None, subset: str | None, split: str) -> None:
        self.name = f"{name}:{subset}/{split}" if subset else f"{name}:{split}"
        self.column = column
        self._dataset = load_dataset(name, subset, split)
        if column is not None:
            _check_column(self.name, column, self._dataset.features)
        self.files = [Path(file["filename"]) for file in self._dataset.cache_files]
        self.bytes = sum(file.stat().st_size for file in self.files)

    def chunks(self) -> Iterator[Chunk]:
        wanted = self._dataset if self.column is None else self._dataset.select_columns([self.column])
        tables = wanted.with_format("arrow").iter(batch_size=TABLE_ROWS)
        batches = (batch for table in tables for batch in table.to_batches())
        return _table_chunks(self.name, self.column, batches, self.bytes, len(wanted))

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(CHUNK_BYTES):
                    digest.update(block)
        return digest.hexdigest()


def _check_column(name: str, column: str, schema: Any) -> None:
    """The column must be there and hold strings; `schema` maps names to Arrow or `datasets` types."""
    names = list(getattr(schema, "names", schema))
    if column not in names:
        raise UserError(f"{name} has no column `{column}`.", f"Columns: {', '.join(names)} (`--text-key`).")
    # A struct is a plain dict to `datasets`, and has no dtype.
    kind = schema.field(column).type if hasattr(schema, "field") else getattr(schema[column], "dtype", schema[column])
    if str(kind).removeprefix("dictionary<values=").partition(",")[0] not in STRINGS:
        raise UserError(f"the column `{column}` of {name} holds {kind}, not strings.", "Choose another `--text-key`.")


def _in_chunks(name: str, kind: Kind, rows: list[bytes | None], size: int) -> Iterator[Chunk]:
    """Rows that are in memory already, in pieces; `size` is shared out evenly."""
    for first in range(0, len(rows), 1024):
        part = rows[first : first + 1024]
        yield Chunk(name, first + 1, kind, part, size * len(part) // len(rows))
