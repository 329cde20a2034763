"""`data build` writes what megatron-core would write, however it is run, and nothing when it cannot."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from transformers import AutoTokenizer

from swift_mega.base.errors import UserError
from swift_mega.data import build as build_module
from swift_mega.data import indexed
from swift_mega.data.build import BuildOptions, build
from swift_mega.data.manifest import read_manifest
from swift_mega.data.summary import summarize

WORDS = ["In", "the", "beginning", "was", "Word,", "1234", "naïve", "中文", "<|pad|>", "\n\n", "don't", "", "."]


def documents(count: int = 3000) -> list[str]:
    """Texts of uneven lengths; every seventh is empty."""
    return [
        " ".join(WORDS[(number + place) % len(WORDS)] for place in range(number * 13 % 7 * 20))
        for number in range(count)
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))
    return path


def reference(tokenizer: Path, texts: list[str], prefix: Path, eod: int | None) -> tuple[bytes, bytes]:
    """One document at a time with transformers and megatron-core's own builder."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(len(loaded)))
    for text in texts:
        ids = loaded(text)["input_ids"]
        if text:
            ids += [] if eod is None else [eod]
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return files(prefix)


def files(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


@pytest.mark.parametrize(
    ("kind", "workers", "append_eod"),
    [
        ("fast", 1, True),
        ("fast", 2, True),
        ("fast", 2, False),
        ("bos", 2, True),
        ("bos", 1, False),
        ("python", 2, True),
    ],
)
def test_bytes_are_megatrons(
    corpus: Path,
    tokenizers: dict[str, Path],
    tmp_path: Path,
    kind: str,
    workers: int,
    append_eod: bool,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(build_module, "CHUNK_BYTES", 1)  # else two workers are not worth starting for so little
    monkeypatch.setattr("swift_mega.base.readers.CHUNK_BYTES", 20_000)
    options = BuildOptions(append_eod=append_eod)
    made = build([str(corpus)], str(tokenizers[kind]), tmp_path / "mine", options, workers=workers)
    # Both tokenizers with BOS end a text with EOS already; then no second one follows.
    eod = made.tokenizer.eod if append_eod and kind == "fast" else None
    theirs = reference(tokenizers[kind], documents(), tmp_path / "theirs", eod)
    assert files(tmp_path / "mine") == theirs
    assert made.empty_documents == 429
    assert made.documents == 3000 - 429
    assert made.tokens * 2 == len(theirs[0])


def test_gigatoken_gives_the_same_bytes(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("gigatoken", reason="the extra `gigatoken` is not installed")
    for engine in ("gigatoken", "tokenizers"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / engine, engine=engine, workers=1)
    assert files(tmp_path / "gigatoken") == files(tmp_path / "tokenizers")


def test_a_wrong_engine_is_refused_before_and_during_the_build(
    corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    pytest.importorskip("gigatoken", reason="the extra `gigatoken` is not installed")
    from swift_mega.data import encode

    right = encode.Gigatoken.encode
    monkeypatch.setattr(
        encode.Gigatoken, "encode", lambda self, batch: (right(self, batch)[0] + 1, right(self, batch)[1])
    )
    with pytest.raises(UserError, match="gigatoken cannot do this tokenizer: it gives other ids for"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a", engine="gigatoken")
    build([str(corpus)], str(tokenizers["fast"]), tmp_path / "b")
    assert "tokenizing with `tokenizers`: gigatoken cannot do this tokenizer" in capsys.readouterr().out
    monkeypatch.setattr(build_module, "_refusal", lambda *_: None)
    with pytest.raises(UserError, match="give different ids for a document of"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / "c", engine="gigatoken")


def test_a_large_vocabulary_takes_four_bytes() -> None:
    assert indexed.token_dtype(65_499) == np.uint16
    assert indexed.token_dtype(65_500) == np.int32
    for size in (10, 65_499, 65_500, 200_000):
        assert indexed.token_dtype(size) == DType.optimal_dtype(size)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_index_bytes_are_megatrons(tmp_path: Path, dtype: type) -> None:
    lengths = np.array([3, 1, 70_000, 5], np.int32)
    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=dtype)
    for length in lengths:
        builder.add_document(torch.zeros(length, dtype=torch.int64), [int(length)])
    builder.finalize(str(tmp_path / "a.idx"))
    assert b"".join(indexed.index_parts(lengths, np.dtype(dtype))) == (tmp_path / "a.idx").read_bytes()
    assert indexed.read_index(tmp_path / "a").lengths.tolist() == lengths.tolist()


def test_eod_token_by_name(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    made = build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a", BuildOptions(eod_token="<|pad|>"))
    assert made.tokenizer.eod == 1
    index = indexed.read_index(tmp_path / "a")
    tokens = np.fromfile(tmp_path / "a.bin", index.dtype)
    assert set(tokens[np.cumsum(index.lengths) - 1]) == {1}
    with pytest.raises(UserError, match=r"no token `<\|pda\|>`(.|\n)*did you mean `<\|pad\|>`"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / "b", BuildOptions(eod_token="<|pda|>"))


def test_the_same_build_is_reused(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a", workers=1)
    written = (tmp_path / "a.bin").stat().st_mtime_ns
    again = build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a", workers=2)
    assert "already built" in capsys.readouterr().out
    assert (tmp_path / "a.bin").stat().st_mtime_ns == written
    assert again == read_manifest(tmp_path / "a")


def _change_text(corpus: Path, _: Path) -> None:
    corpus.write_bytes(corpus.read_bytes().replace(b"Word", b"Wort", 1))


def _change_bin(_: Path, prefix: Path) -> None:
    Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes()[:-2])


@pytest.mark.parametrize(
    ("change", "kind", "options", "message"),
    [
        (_change_text, "fast", {}, "its inputs have changed"),
        (_change_bin, "fast", {}, r"a.bin has \d+ bytes where \d+ are due"),
        (lambda *_: None, "bos", {}, "built with another tokenizer"),
        (lambda *_: None, "fast", {"append_eod": False}, r"built with other options \(append_eod\)"),
        (lambda corpus, prefix: Path(f"{prefix}.json").unlink(), "fast", {}, "has no manifest"),
    ],
)
def test_another_build_is_refused_or_replaced(
    corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, change: Any, kind: str, options: Any, message: str
) -> None:
    prefix = tmp_path / "a"
    build([str(corpus)], str(tokenizers["fast"]), prefix)
    change(corpus, prefix)
    with pytest.raises(UserError, match=f"{message}(.|\n)*--overwrite"):
        build([str(corpus)], str(tokenizers[kind]), prefix, BuildOptions(**options))
    made = build([str(corpus)], str(tokenizers[kind]), prefix, BuildOptions(**options), overwrite=True)
    assert made == read_manifest(prefix)
    assert indexed.read_index(prefix).tokens == made.tokens


def test_bad_rows(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    corpus.write_text(corpus.read_text() + '{"text": 5}\n{\n')
    with pytest.raises(UserError, match=r"2 bad rows(.|\n)*corpus.jsonl:3001: `text` is not a string"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]
    made = build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a", BuildOptions(on_bad_row="skip"))
    assert made.bad_rows == {"`text` is not a string": 1, "not valid JSON": 1}
    assert "corpus.jsonl:3002: not valid JSON" in capsys.readouterr().out


def test_an_id_beyond_the_vocabulary(
    corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    choose = build_module._choose_engine
    monkeypatch.setattr(build_module, "_choose_engine", lambda *args: replace(choose(*args), vocab_size=100))
    with pytest.raises(UserError, match=r"row 1 on holds token \d+, the model's vocabulary ends at 99"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(
    corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, monkeypatch: Any, number: int
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(indexed.IndexedWriter, "add", full)
    with pytest.raises(UserError, match=r"is full(.|\n)*Free space there"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_nothing_to_write(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match=r"a.jsonl: 1 empty document, 0 bad rows, no others(.|\n)*--text-key"):
        build([str(tmp_path / "a.jsonl")], str(tokenizers["fast"]), tmp_path / "a")


@pytest.mark.parametrize("rows", ['{"title": "x", "body": "y"}\n', '\n[{"title": "x", "body": "y"}]'])
def test_a_wrong_text_key_is_one_line(rows: str, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(rows)
    with pytest.raises(UserError, match=r"a.json has no key `text`.\n.*Keys of its first row: title, body \(`--text"):
        build([str(tmp_path / "a.json")], str(tokenizers["fast"]), tmp_path / "b")


@pytest.mark.parametrize("output", ["data/", ".", ".."])
def test_a_folder_is_no_prefix(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, output: str) -> None:
    with pytest.raises(UserError, match=r"is a folder(.|\n)*/data"):
        build([str(corpus)], str(tokenizers["fast"]), f"{tmp_path}/{output}")


def test_an_ending_is_left_off(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    build([str(corpus)], str(tokenizers["fast"]), f"{tmp_path}/a.bin", workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx", "a.json", "corpus.jsonl"]


@pytest.mark.parametrize("workers", [0, -3])
def test_no_workers(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError, match=f"{workers} processes(.|\n)*at least 1"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a", workers=workers)


def test_what_a_killed_build_left_is_cleared_away(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host, gone, here = socket.gethostname(), child.pid, os.getpid()
    dead, alive = (tmp_path / f".a.{host}-{pid}.xyz.unfinished" for pid in (gone, here))
    elsewhere = tmp_path / f".a.another-host-{gone}.xyz.unfinished"
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
    build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a", workers=1)
    assert not dead.exists() and alive.exists() and elsewhere.exists()


def test_an_input_is_not_written_over(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "books.json").write_text('[{"text": "Word"}]')
    with pytest.raises(UserError, match="is an input and would be written over"):
        build([str(tmp_path / "books.json")], str(tokenizers["fast"]), tmp_path / "books", overwrite=True)


def test_no_end_of_sequence(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(tokenizers["fast"], tmp_path / "no-eos")
    settings = json.loads((tmp_path / "no-eos" / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (tmp_path / "no-eos" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"names no end of sequence(.|\n)*--eod-token"):
        build([str(corpus)], str(tmp_path / "no-eos"), tmp_path / "a")
    assert (
        build([str(corpus)], str(tmp_path / "no-eos"), tmp_path / "a", BuildOptions(append_eod=False)).tokenizer.eod
        is None
    )


def test_a_folder_without_tokenizer(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no tokenizer could be loaded from"):
        build([str(corpus)], str(tmp_path / "empty"), tmp_path / "a")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda definition: definition | {"model": {"type": "OfTomorrow"}}, "did not match any variant"),
        (lambda definition: [definition], "cannot be interpreted as an integer"),
    ],
)
def test_a_tokenizer_that_is_damaged_or_too_new(
    edit: Callable[[Any], Any], reason: str, corpus: Path, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tokenizers["fast"], tmp_path / "new")
    definition = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(edit(definition)))
    with pytest.raises(UserError, match=f"no tokenizer could be loaded from .*{reason}"):
        build([str(corpus)], str(folder), tmp_path / "a")


def test_a_killed_worker(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(build_module, "_worker_count", lambda *_: 2)
    monkeypatch.setattr(build_module, "start_worker", lambda _: os._exit(9))
    with pytest.raises(UserError, match=r"was killed, most likely for memory(.|\n)*--workers"):
        build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_workers_and_help_need_no_torch() -> None:
    code = "import sys, swift_mega.data.commands, swift_mega.data.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_inspect(corpus: Path, tokenizers: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    build([str(corpus)], str(tokenizers["fast"]), tmp_path / "a")
    capsys.readouterr()
    summarize(f"{tmp_path}/a.bin")
    shown = capsys.readouterr().out
    assert "2,571 documents" in shown
    assert "left out: 429 empty documents" in shown
    assert documents()[1][:40] in shown
    (tmp_path / "a.json").unlink()
    summarize(f"{tmp_path}/a", document=5)
    assert "no manifest" in capsys.readouterr().out
    with pytest.raises(UserError, match="no document 2571"):
        summarize(f"{tmp_path}/a", document=2571)
