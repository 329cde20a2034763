"""Rows as examples: what is left out is said with its place, and nothing is made twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_bridge.data.rows import Rows, load_rows
from hf_bridge.methods import encode
from hf_bridge.methods.config import LongRows, TuneConfig
from hf_bridge.methods.encode import Examples, examples
from hf_bridge.methods.method import Setup
from hf_bridge.methods.sft import answers
from hf_bridge.templates.encoding import encoder
from swift_mega.base.config import build
from swift_mega.base.errors import UserError
from swift_mega.data.tokenizer import load_tokenizer
from tests.hf_bridge.methods.runs import Ground


def encoded(ground: Ground, file: Path, cache: Path, workers: int = 1, **options: Any) -> Examples:
    values = {
        "model": str(ground.model),
        "output": "unused",
        "data": {"dataset": [str(file)], "cache_dir": str(cache), "shuffle": False, "workers": workers},
        "length": {"long_rows": "drop"},
    }
    config = build(TuneConfig, values)
    for name, value in options.items():
        setattr(config.data if name in ("on_bad_row", "shuffle") else config.length, name, value)
    tokenizer = load_tokenizer(str(ground.model))
    setup = Setup(config, tokenizer, encoder(tokenizer, "plain"))
    return examples(setup, load_rows(config.data).train, answers)


def written(folder: Path, *answers: str, silent: tuple[int, ...] = ()) -> Path:
    """One question a line, with these answers; some are not to be trained on."""
    rows = []
    for number, text in enumerate(answers, start=1):
        last = {"role": "assistant", "content": text} | ({"loss": False} if number in silent else {})
        rows.append({"messages": [{"role": "user", "content": "?"}, last]})
    file = folder / "chat.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_a_row_that_cannot_be_encoded_is_named(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, "a", "b", "c", silent=(2,))
    with pytest.raises(UserError, match=r"chat.jsonl:2: nothing in the row is trained on"):
        encoded(ground, file, tmp_path / "cache")
    found = encoded(ground, file, tmp_path / "cache", on_bad_row="skip")
    assert len(found) == 2
    assert "1 bad row: " in (out := capsys.readouterr().out) and "chat.jsonl:2" in out


@pytest.mark.parametrize(
    ("policy", "lengths"), [("truncate", [4, 10]), ("drop", [4]), ("split", [4, 10, 10, 3]), ("raise", None)]
)
def test_long_rows(
    policy: LongRows, lengths: list[int] | None, ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Beside the question and the end there are 2 and 21 tokens.
    file = written(tmp_path, "zq", "zq" * 10 + "z")
    if lengths is None:
        with pytest.raises(UserError, match=r"chat.jsonl:2: more than 10 tokens"):
            encoded(ground, file, tmp_path / "cache", max_length=10, long_rows=policy)
        return
    found = encoded(ground, file, tmp_path / "cache", max_length=10, long_rows=policy)
    assert found.lengths.tolist() == lengths
    assert found.tokens == sum(lengths)
    said = capsys.readouterr().out
    assert "1 long row: " in said and f"chat.jsonl:2: more than 10 tokens (`long_rows` is `{policy}`)" in said


@pytest.mark.parametrize(
    ("policy", "kept", "says"),
    [
        ("truncate", 1, "1 example left out, with nothing to train on, of 1 row: {}:2: cut at 6 tokens, it has no ans"),
        (
            "split",
            2,
            "3 examples left out, with nothing to train on, of 1 row: {}:2: nothing in some of its parts of 6",
        ),
    ],
)
def test_what_has_nothing_to_train_on_is_said(
    policy: LongRows, kept: int, says: str, ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.jsonl"
    turns = [[{"role": "user", "content": "?" * n}, {"role": "assistant", "content": "zq"}] for n in (1, 19)]
    file.write_text("\n".join(json.dumps({"messages": both}) for both in turns), encoding="utf-8")
    found = encoded(ground, file, tmp_path / "cache", max_length=6, long_rows=policy)
    assert (len(found), found.counts.unlabelled.reasons.total()) == (kept, 1)
    assert says.format(file) in capsys.readouterr().out


def test_rows_left_out_are_listed_by_file_and_line(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "PIECE_ROWS", 7)
    file = written(tmp_path, *["a"] * 40, silent=tuple(range(3, 41)))
    with pytest.raises(UserError) as error:
        encoded(ground, file, tmp_path / "cache", shuffle=True)
    lines = ", ".join(map(str, range(3, 23)))
    assert error.value.what.startswith(f"38 bad rows: {file}:{lines} and 18 more: nothing in the row is trained on")


def test_nothing_left_is_an_error(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is left to train on of 1 row: 1 dropped"):
        encoded(ground, written(tmp_path, "long" * 9), tmp_path / "cache", max_length=4, long_rows="drop")


def test_it_is_done_once_and_by_several(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, *(f"answer {number}" for number in range(40)))
    monkeypatch.setattr(encode, "PIECE_ROWS", 7)
    one = encoded(ground, file, tmp_path / "one")
    several = encoded(ground, file, tmp_path / "several", workers=2)
    assert (one.folder / "examples.bin").read_bytes() == (several.folder / "examples.bin").read_bytes()
    assert np.array_equal(one.lengths, several.lengths)
    monkeypatch.setattr(encode, "_write", lambda *_: pytest.fail("it is in the cache"))
    assert [row.ids for row in encoded(ground, file, tmp_path / "one")] == [row.ids for row in one]


def test_rows_of_no_file_have_numbers(ground: Ground) -> None:
    rows = Rows.all_of([])
    assert len(rows) == 0
    assert Rows.all_of(list(load_rows(ground.config("unused").data).train)).where(4) == "row 5"
