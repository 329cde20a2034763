"""Rows out of every format, with their places, and nothing lost without a word."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swift_mega.base import readers
from swift_mega.base.errors import UserError
from swift_mega.base.readers import BadRow, BadRows, Corpus

TEXTS = ["one", "zwei\nLinien", "三 \N{SNOWMAN}", ""]


def read(
    *inputs: Path | str, policy: readers.OnBadRow = "raise", **options: str
) -> tuple[list[str], list[str], BadRows]:
    bad = BadRows()
    rows = list(Corpus([str(name) for name in inputs], **options).texts(bad, policy))  # type: ignore[arg-type]
    return [row.text for row in rows], [row.where for row in rows], bad


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS))


def write_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)))


def write_zst(path: Path) -> None:
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS))


def write_list(path: Path) -> None:
    path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=2))


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS, "n": range(len(TEXTS))}), path)


def write_arrow_stream(path: Path) -> None:
    table = pa.table({"text": TEXTS, "n": range(len(TEXTS))})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def write_arrow_file(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], None]] = {
    "a.jsonl": write_jsonl,
    "a.json": write_jsonl,
    "a.jsonl.gz": write_gz,
    "a.jsonl.zst": write_zst,
    "list.json": write_list,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow_stream,
    "b.arrow": write_arrow_file,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_formats(tmp_path: Path, name: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / name
    WRITERS[name](path)
    texts, places, bad = read(path)
    assert texts == TEXTS
    assert places == [f"{path}:{number}" for number in range(1, 5)]
    assert not bad.reasons


@pytest.mark.parametrize("name", WRITERS)
def test_whole_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    rows = [row for chunk in Corpus([str(path)], text_key=None).chunks() for row in readers.records(chunk)]
    assert all(isinstance(row, readers.Record) for row in rows)
    assert [row.values["text"] for row in rows if isinstance(row, readers.Record)] == TEXTS
    assert [row.where for row in rows] == [f"{path}:{number}" for number in range(1, 5)]


@pytest.mark.parametrize("name", WRITERS)
def test_sizes_of_chunks_add_up_to_the_file(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    corpus = Corpus([str(tmp_path / name)])
    assert sum(chunk.size for chunk in corpus.chunks()) == corpus.bytes


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["first\nline\n\n\n\nsecond\n"]),
        ("paragraph", ["first\nline", "second"]),
        ("line", ["first", "line", "", "", "", "second"]),
    ],
)
def test_txt(tmp_path: Path, documents: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_text("first\nline\n\n\n\nsecond\n")
    assert read(tmp_path / "a.txt", txt_documents=documents)[0] == expected


def test_a_line_of_blanks_parts_paragraphs_and_indents_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n \t\r\n  two\n\tthree\n")
    assert read(tmp_path / "a.txt", txt_documents="paragraph")[0] == ["one", "  two\n\tthree"]


def test_many_inputs_keep_their_order(tmp_path: Path) -> None:
    for folder, name in (("x", "b"), ("x", "a"), ("y", "c")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.jsonl").write_text(json.dumps({"body": name}))
    (tmp_path / "x" / "notes.md").write_text("not data")
    (tmp_path / "x" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "x" / ".ipynb_checkpoints" / "a-checkpoint.jsonl").write_text(json.dumps({"body": "a second time"}))
    assert read(tmp_path / "y", f"{tmp_path}/x/*.jsonl", text_key="body")[0] == ["c", "a", "b"]
    assert read(tmp_path / "x", text_key="body")[0] == ["a", "b"]


BAD_LINES = [
    b'{"text": "good"}',
    b"{broken",
    b"",
    b'["a list"]',
    b'{"body": "no text"}',
    b'{"text": 5}',
    b'{"text": "\xff\xfe"}',
    b'{"text": "half \\ud800 pair"}',
    b'{"text": "fine", "score": NaN}',
]


def test_bad_rows_are_counted_and_placed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(BAD_LINES))
    texts, places, bad = read(path, policy="skip")
    assert texts == ["good", "fine"]
    assert places == [f"{path}:1", f"{path}:9"]
    assert [(row.where, row.reason) for row in bad.first] == [
        (f"{path}:2", "not valid JSON"),
        (f"{path}:4", "not a JSON object"),
        (f"{path}:5", "no key `text`"),
        (f"{path}:6", "`text` is not a string"),
        (f"{path}:7", "not UTF-8"),
        (f"{path}:8", "`text` holds half of a surrogate pair"),
    ]


def test_a_row_too_deep_for_any_parser_is_a_bad_row(tmp_path: Path) -> None:
    deep = '{"text": "a", "more": ' + "[" * 100_000 + "]" * 100_000 + "}"
    (tmp_path / "a.jsonl").write_text(f'{deep}\n{{"text": "b"}}\n')
    texts, _, bad = read(tmp_path / "a.jsonl", policy="skip")
    assert (texts, bad.reasons) == (["b"], {"not valid JSON": 1})
    (tmp_path / "a.json").write_text(f"[{deep}]")
    with pytest.raises(UserError, match="is not valid JSON"):
        read(tmp_path / "a.json")


def test_upper_case_names(tmp_path: Path) -> None:
    write_gz(tmp_path / "A.JSONL.GZ")
    assert read(tmp_path)[0] == read(tmp_path / "A.JSONL.GZ")[0] != []


def test_a_bad_row_ends_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(BAD_LINES))
    with pytest.raises(UserError, match=r"1 bad row: .*a.jsonl:2: not valid JSON(.|\n)*--on-bad-row skip"):
        read(tmp_path / "a.jsonl")


def test_the_report_shows_twenty_places(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n" * 50)
    bad = read(tmp_path / "a.jsonl", policy="skip")[2]
    assert bad.reasons == {"not valid JSON": 50}
    assert len(bad.first) == 20
    places = ", ".join(map(str, range(1, 21)))
    assert str(bad) == f"50 bad rows: {tmp_path}/a.jsonl:{places} and 30 more: not valid JSON"
    bad.add([BadRow("not UTF-8", "b.jsonl:1")])
    assert "51 bad rows:\n        50  not valid JSON\n         1  not UTF-8\n" in str(bad)
    assert f"{tmp_path}/a.jsonl:20: not valid JSON" in str(bad) and "a.jsonl:21" not in str(bad)


def test_one_reason_is_one_line_that_names_each_file_once() -> None:
    bad = BadRows()
    bad.add([BadRow("empty", place) for place in ("a.jsonl:2", "a.jsonl:5", "b.jsonl:1", "row 7")])
    assert bad.report("long row") == "4 long rows: a.jsonl:2, 5; b.jsonl:1; row 7: empty"


def test_null_in_a_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    texts, _, bad = read(tmp_path / "a.parquet", policy="skip")
    assert (texts, bad.first[0].where) == (["a"], f"{tmp_path}/a.parquet:2")


def damaged(path: Path, write: Callable[[Path], None]) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:-12])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.jsonl", lambda path: None, "is no file"),
        ("*.nothing", lambda path: None, "is no file"),
        ("a.xlsx", lambda path: path.write_text("a,b"), r"format `.xlsx` is not known"),
        ("a.jsonl.gz", lambda path: damaged(path, write_gz), "cannot be read to its end"),
        ("a.jsonl.zst", lambda path: damaged(path, write_zst), "cannot be read to its end"),
        ("a.json.gz", lambda path: path.write_bytes(b"not gzip"), "cannot be read to its end: Not a gzipped file"),
        ("b.json.gz", lambda path: path.write_bytes(gzip.compress(b"[]")[:12]), "cannot be read to its end"),
        ("a.json.zst", lambda path: path.write_bytes(b"not zstd"), "cannot be read to its end"),
        ("a.parquet", lambda path: damaged(path, write_parquet), "cannot be read as Parquet"),
        ("a.json", lambda path: path.write_text('[{"text": "a"}, '), "is not valid JSON"),
        ("b.parquet", lambda path: pq.write_table(pa.table({"n": [1]}), path), "has no column `text`.\n.*Columns: n"),
        ("c.parquet", lambda path: pq.write_table(pa.table({"text": [1]}), path), "holds int64, not strings"),
        ("d.parquet", lambda path: pq.write_table(pa.table({"text": [["a"]]}), path), "holds list<.*, not strings"),
    ],
)
def test_errors(tmp_path: Path, name: str, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_column_of_a_data_set_that_holds_structs() -> None:
    import datasets

    features = datasets.Features({"text": {"role": datasets.Value("string")}})
    with pytest.raises(UserError, match=r"holds \{.*\}, not strings"):
        readers._check_column("org/chats", "text", features)


@pytest.mark.parametrize("end", ["", "\r\n"])
def test_lines_of_windows(tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last line of a chunk."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", 8)
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\nthree" + end.encode())
    assert read(tmp_path / "a.txt", txt_documents="line")[0] == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["mlfoundations/dclm-baseline-1.0", "org/texts", "ms::org/texts-v1.5"])
def test_ids_of_data_sets(name: str) -> None:
    assert readers.find_files(name) is None


@pytest.mark.parametrize("name", ["data/texts.jsonl", "data/texts.txt.gz", "data/texts.csv", "./texts", "a/b/c"])
def test_files_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match="is no file"):
        readers.find_files(name)


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_columns_of_csv(tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row stands where its first line does; one with too many values is a bad row, an empty line none."""
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbftext,n\r\n"two\r\nlines, ""quoted""",1\r\n\r\na,b,c\r\nlast,2\r\n')
    texts, places, bad = read(path, policy="skip")
    assert texts == ['two\r\nlines, "quoted"', "last"]
    assert places == [f"{path}:2", f"{path}:6"]
    assert [(row.where, row.reason) for row in bad.first] == [(f"{path}:5", "3 values for 2 columns")]
    corpus = Corpus([str(path)])
    assert sum(chunk.size for chunk in corpus.chunks()) == corpus.bytes


def test_columns_of_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"n\ttext\n1\tone, two\n"))
    assert read(tmp_path / "a.tsv.gz")[0] == ["one, two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b,a\n", "two columns `a`"),
        (b'text\n"open\n', "after line 2: unexpected end of data"),
        (b"text\n\xff\n", "cannot be read after line"),
    ],
)
def test_damaged_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.csv")


def test_absent_fields_of_a_table_are_absent(tmp_path: Path) -> None:
    """Arrow gives every struct the fields of all."""
    rows = [{"calls": [{"a": 1}], "x": None}, {"calls": [{"b": "2"}], "x": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (chunk,) = Corpus([str(tmp_path / "a.parquet")], text_key=None).chunks()
    values = [row.values for row in readers.records(chunk) if isinstance(row, readers.Record)]
    assert values == [{"calls": [{"a": 1}]}, {"calls": [{"b": "2"}], "x": 1}]


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved")[0] == TEXTS
