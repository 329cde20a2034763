"""From files to rows that are mixed, sampled, split and kept."""

import json
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_bridge.data import reading, store
from hf_bridge.data.config import RowsConfig
from hf_bridge.data.recognise import Recognition
from hf_bridge.data.row import Message, Row, ToolCall
from hf_bridge.data.rows import Loaded, Rows, concatenate, interleave, load_rows, replacement
from hf_bridge.data.stream import RowStream
from swift_mega.base import readers
from swift_mega.base.errors import UserError
from swift_mega.base.readers import Corpus

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`count` pairs whose questions are `NAME 0`, `NAME 1` …, and after them `more` lines; gives the path."""

    def make(name: str, count: int, *more: str) -> str:
        rows = [json.dumps({"query": f"{name} {number}", "response": "yes"}) for number in range(count)]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f"{row}\n" for row in (*rows, *more)))
        return str(path)

    return make


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Loaded]:
    """`load_rows` in order, with a cache of the test's own."""

    def make(*dataset: str, **options: Any) -> Loaded:
        values = {"shuffle": False, "cache_dir": str(tmp_path / "cache"), "workers": 1, **options}
        return load_rows(RowsConfig(dataset=list(dataset), **values))

    return make


def asked(rows: Sequence[Row] | None) -> list[str]:
    assert rows is not None
    return [row.messages[0].content for row in rows]


def test_rows_come_back_as_they_were_read(tmp_path: Path, load: Callable[..., Loaded]) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, None, 2.5]}}}]
    call = {"function": {"name": "f", "arguments": '{"x": {"y": [null, "ü"]}}'}}
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [call], "reasoning_content": "hm", "loss": True, "weight": 2},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "a"},
    ]
    raw = {"messages": turns, "tools": tools, "rejected_response": "b", "margin": 1, "images": ["data:,i"], "id": 2**63}
    (tmp_path / "a.json").write_text(json.dumps([raw]))
    calling = Message("assistant", "", (ToolCall("f", {"x": {"y": [None, "ü"]}}),), "hm", True, 2.0)
    answer = (calling, Message("tool", ""))
    expected = Row(
        messages=(Message("user", "<image>q"), *answer, Message("assistant", "a")),
        tools=tuple(tools),
        images=("data:,i",),
        rejected=(*answer, Message("assistant", "b")),
        margin=1.0,
        extra={"id": 2**63},
    )
    assert list(load(str(tmp_path / "a.json"), keep_columns=["id"]).train) == [expected]


def test_every_format_of_a_file(tmp_path: Path, write: Write, load: Callable[..., Loaded]) -> None:
    lines = [json.loads(line) for line in Path(write("a", 3)).read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("query,response\na 0,yes\na 1,yes\na 2,yes\n")
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.parquet", "c.csv")]
    assert asked(load(*paths).train) == ["a 0", "a 1", "a 2"] * 3
    (tmp_path / "d.txt").write_text("one\ntwo\n")
    texts = load(str(tmp_path / "d.txt"), txt_documents="line").train
    assert asked(texts) == ["one", "two"]


def test_bytes_of_a_table(tmp_path: Path, load: Callable[..., Loaded]) -> None:
    rows = [{"query": "<image>?", "response": "yes", "image": {"bytes": b"PNG", "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load(str(tmp_path / "a.parquet")).train[0].images == ("data:;base64,UE5H",)


def test_a_data_set_of_a_hub(load: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the columns that the registry names, in the subset and split that are asked for."""
    import datasets

    asked_for = []
    rows = [{"sql_prompt": f"q {number}", "sql": "SELECT 1", "sql_context": "t", "id": number} for number in range(5)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")

    def fetched(name: str, subset: str | None, split: str) -> Any:
        asked_for.append((name, subset, split))
        return datasets.load_from_disk(str(tmp_path / "saved"))

    monkeypatch.setattr(readers, "load_dataset", fetched)
    found = load("synthetic-text-to-sql:sub/test#3")
    assert asked_for == [("hf::gretelai/synthetic_text_to_sql", "sub", "test")]
    assert set(asked(found.train)) < {f"q {number}\nt" for number in range(5)}
    assert len(found.train) == 3
    assert found.report.unused == {"id": 5}


def test_workers_give_the_same_bytes(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(store, "CHUNK_BYTES", 1000)
    path = write("a", 200, "{}", "{")
    folders = []
    for workers in (1, 2):
        corpus = Corpus([path], text_key=None)
        folders.append(store.stored(corpus, Recognition(), tmp_path / str(workers), workers).folder)
    for name in ("rows.bin", "ends.npy", "report.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    files = [".lock", "ends.npy", "media.json", "report.json", "rows.bin"]
    assert sorted(path.name for path in folders[1].iterdir()) == files


def test_the_cache(write: Write, load: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again only where bytes, options or code have changed; the report is kept with it."""
    read: list[Path] = []
    write_folder = store._write

    def counted(corpus: Corpus, options: Recognition, folder: Path, workers: int) -> None:
        read.append(folder)
        write_folder(corpus, options, folder, workers)

    monkeypatch.setattr(store, "_write", counted)
    path = write("a", 3, "[]")
    for _ in range(2):
        found = load(path, on_bad_row="skip")
        assert found.report.bad.reasons == {"not a JSON object": 1}
        assert found.report.bad.first[0].where == f"{path}:4"
    assert len(read) == 1
    load(path, on_bad_row="skip", keep_columns=["query"])
    assert len(read) == 2
    write("a", 4)
    assert len(load(path).train) == 4
    monkeypatch.setattr(store, "_code_version", lambda: "other")
    load(path)
    assert len(read) == 4


def test_a_file_that_has_not_changed_is_not_summed_again(write: Write, tmp_path: Path) -> None:
    import os

    path = Path(write("a", 1))
    before = store._checksum(path, tmp_path)
    assert not (tmp_path / "checksums").exists()  # written to just now
    os.utime(path, (1, 1))
    store.SETTLED_S, settled = -1.0, store.SETTLED_S
    try:
        assert store._checksum(path, tmp_path) == before
        (memo,) = (tmp_path / "checksums").iterdir()
        memo.write_text("remembered")
        assert store._checksum(path, tmp_path) == "remembered"
        path.write_text("other")
        assert store._checksum(path, tmp_path) not in (before, "remembered")
    finally:
        store.SETTLED_S = settled


def start(path: str, cache: str, results: Any) -> None:
    rows = store.stored(Corpus([path], text_key=None), Recognition(), Path(cache), 1)
    results.put((len(rows), (rows.folder / "rows.bin").stat().st_ino))


def test_several_starts_at_once_read_once(write: Write, tmp_path: Path) -> None:
    path, context = write("a", 300), multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=start, args=(path, str(tmp_path / "cache"), results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert [rows for rows, _ in found] == [300]


def test_rows_travel_to_another_process(write: Write, load: Callable[..., Loaded]) -> None:
    rows = load(write("a", 5)).train
    assert asked(pickle.loads(pickle.dumps(rows[1:3]))) == ["a 1", "a 2"]


def test_bad_rows(write: Write, load: Callable[..., Loaded]) -> None:
    path = write("a", 1, '{"messages": []}', "{", '{"query": "x", "response": "\\ud800"}')
    places = rf"3 bad rows:(.|\n)*{path}:2: `messages` is empty\n.*{path}:3: not valid JSON\n.*{path}:4: half of a surr"
    with pytest.raises(UserError, match=places):
        load(path)
    assert len(load(path, on_bad_row="skip").train) == 1


def test_what_is_said(write: Write, load: Callable[..., Loaded], capsys: pytest.CaptureFixture[str]) -> None:
    path = write("a", 2, '{"text": "x", "id": 1}')
    load(path)
    assert f"{path}: 3 rows (2 query and response, 1 text)\nnot used: `id` (1)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["qery=system"]}, "no row has a column `qery`.\n.*did you mean `query`"),
        ({"keep_columns": ["solution"]}, "no row has a column `solution`"),
        ({"val_share": 0.1}, "holds out 0"),
        ({"val_share": 0.5, "val_dataset": ["x"]}, "both `val_dataset` and `val_share`"),
        ({"mix": "replacement"}, "`rows` is None"),
        ({"rows": 3}, "`rows` is 3 and `mix` is `concatenate`"),
        ({"dataset": []}, "names no data"),
        ({"dataset": ["self-cognition"]}, "that is not said.\n.*--model-name"),
        ({"model_name": ["x"]}, "Give both"),
    ],
)
def test_wrong_options(write: Write, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    values = {"dataset": [write("a", 3)], "cache_dir": str(tmp_path / "cache"), **options}
    with pytest.raises(UserError, match=message):
        load_rows(RowsConfig(**values))


def test_weights_that_make_no_sense(write: Write, load: Callable[..., Loaded]) -> None:
    one, other = write("a", 1), write("b", 1)
    with pytest.raises(UserError, match="has no weight while others have one"):
        load(f"0.5 {one}", other, mix="interleave")
    with pytest.raises(UserError, match="`mix` is `concatenate`"):
        load(f"0.5 {one}", f"1 {other}")
    with pytest.raises(UserError, match=r"it takes .* rows to use all up"):
        load(f"1e-12 {one}", f"1 {other}", mix="interleave", stopping="all_exhausted")


def test_an_empty_file(write: Write, load: Callable[..., Loaded]) -> None:
    with pytest.raises(UserError, match="has no rows"):
        load(write("a", 0))


def test_numbers_of_rows(write: Write, load: Callable[..., Loaded]) -> None:
    path = write("a", 10)
    four = asked(load(f"{path}#4").train)
    assert len(set(four)) == 4 and four == sorted(four)
    assert four == asked(load(f"{path}#4").train)
    assert set(Counter(asked(load(f"{path}#25").train)).values()) == {2, 3}
    assert asked(load(f"{path}#10").train) == asked(load(path).train)


def test_shuffling_and_holding_out(write: Write, load: Callable[..., Loaded]) -> None:
    path = write("a", 50)
    found = load(path, val_share=0.2, shuffle=True, seed=1)
    assert (len(found.train), len(found.valid or ())) == (40, 10)
    assert set(asked(found.train)) | set(asked(found.valid)) == set(asked(load(path).train))
    again, other = (load(path, val_share=0.2, shuffle=True, seed=seed) for seed in (1, 2))
    assert asked(again.train) == asked(found.train) and asked(again.valid) == asked(found.valid)
    assert asked(other.valid) != asked(found.valid)
    assert asked(found.train) != sorted(asked(found.train))
    assert asked(load(path, val_dataset=[path]).valid) == asked(load(path).train)


def parts(*sizes: int) -> list[Rows]:
    made = []
    for name, size in zip("abc", sizes, strict=False):
        rows = [Row(messages=(Message("user", f"{name}{number}"),)) for number in range(size)]
        made.append(Rows.all_of(rows))
    return made


@pytest.mark.parametrize("stopping", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("weights", [None, [0.1, 0.6, 0.3]])
def test_interleaving(stopping: Any, weights: list[float] | None) -> None:
    """Against drawing one by one."""
    sizes = (7, 20, 4)
    generator, chances = np.random.default_rng(3), np.asarray(weights or [1 / 3] * 3)
    given, expected = [0, 0, 0], []
    while True:
        part = int(generator.choice(3, p=chances / chances.sum()))
        if stopping == "first_exhausted" and given[part] == sizes[part]:
            break
        expected.append(f"{'abc'[part]}{given[part] % sizes[part]}")
        given[part] += 1
        if stopping == "all_exhausted" and all(number >= size for number, size in zip(given, sizes, strict=True)):
            break
    assert asked(interleave(parts(*sizes), weights, stopping, 3)) == expected


def test_interleaving_and_replacement_follow_the_weights(write: Write, load: Callable[..., Loaded]) -> None:
    a, b = write("a", 3000), write("b", 3000)
    mixed = asked(load(f"3 {a}", f"1 {b}", mix="interleave").train)
    assert len(set(mixed)) == len(mixed)
    assert sum(text.startswith("a") for text in mixed) / len(mixed) == pytest.approx(0.75, abs=0.03)
    drawn = asked(replacement(parts(10, 1000), [1, 3], 4000, 0))
    shares = Counter(text[0] for text in drawn)
    assert shares["b"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert len({text for text in drawn if text[0] == "a"}) == 10
    assert len(load(a, b, mix="replacement", rows=10).train) == 10


def test_concatenated_parts_of_parts() -> None:
    a, b = parts(3, 2)
    assert asked(concatenate([a[1:], concatenate([b, a])])) == ["a1", "a2", "b0", "b1", "a0", "a1", "a2"]
    assert a[-1].messages[0].content == "a2"
    with pytest.raises(IndexError):
        a[3]


def test_a_stream(write: Write, load: Callable[..., Loaded]) -> None:
    a, b = write("a", 30), write("b", 5, "{")
    config = RowsConfig(dataset=[a, f"{write('c', 5)}#3"], shuffle=False)
    whole = asked(load(a).train)
    assert asked(list(RowStream(config))) == [*whole, "c 0", "c 1", "c 2"]
    skipping = RowsConfig(dataset=[a, b], shuffle=False, on_bad_row="skip")
    stream = RowStream(skipping)
    assert asked(list(stream)) == [*whole, *(f"b {number}" for number in range(5))]
    assert (stream.report.rows, stream.report.bad.reasons.total()) == (35, 1)
    shared = [asked(list(RowStream(skipping, part=part, parts=2))) for part in (0, 1)]
    assert sorted(shared[0] + shared[1]) == sorted(asked(list(stream)))
    shuffled = RowsConfig(dataset=[a], seed=3)
    order = asked(list(RowStream(shuffled, window=8)))
    assert sorted(order) == sorted(whole) and order != whole
    assert order == asked(list(RowStream(shuffled, window=8)))


def test_an_interleaved_stream_is_the_interleaved_rows(write: Write, load: Callable[..., Loaded]) -> None:
    names = [f"0.7 {write('a', 30)}", f"0.3 {write('b', 20)}"]
    config = RowsConfig(dataset=names, mix="interleave", shuffle=False)
    assert asked(list(RowStream(config))) == asked(load(*names, mix="interleave").train)


@pytest.mark.parametrize("options", [{"val_share": 0.1}, {"mix": "replacement", "rows": 2}])
def test_what_a_stream_cannot_do(write: Write, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="needs all rows at once"):
        RowStream(RowsConfig(dataset=[write("a", 3)], **options))


def test_a_bad_row_ends_a_stream(write: Write) -> None:
    with pytest.raises(UserError, match="not valid JSON"):
        list(RowStream(RowsConfig(dataset=[write("a", 3, "{")])))


def test_a_line_of_ten_megabytes(tmp_path: Path, load: Callable[..., Loaded]) -> None:
    text = "x" * 10_000_000
    (tmp_path / "a.jsonl").write_text(f'{{"text": "{text}"}}\n{{"text": "y"}}\n')
    (tmp_path / "a.csv").write_text(f"text\n{text}\ny\n")
    for name in ("a.jsonl", "a.csv"):
        assert asked(load(str(tmp_path / name)).train) == [text, "y"]


def test_numbers_too_large_to_keep(tmp_path: Path) -> None:
    row = {"query": "x", "response": "y", "tools": [{"name": "f", "n": 2**70}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (chunk,) = Corpus([str(tmp_path / "a.jsonl")], text_key=None).chunks()
    (bad,) = reading.read_piece(chunk, Recognition()).report.bad.first
    assert "a value that cannot be kept" in bad.reason
