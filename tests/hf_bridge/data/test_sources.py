"""The short way to name data, and the registry behind it."""

from pathlib import Path

import pytest

from hf_bridge.data.formats import COLUMNS
from hf_bridge.data.registry import DATA_SETS
from hf_bridge.data.sources import parse_source
from swift_mega.base.errors import UserError
from swift_mega.base.hub import is_id

TABLE_13 = [
    "alpaca-en",
    "synthetic-text-to-sql",
    "firefly-train-1.1M",
    "deepctrl-sft",
    "ruozhiba",
    "ms-agent",
    "ms-agent-pro",
    "chinese-c4",
    "fineweb",
    "okvqa",
    "a-okvqa",
    "chart-qa",
    "ocr-vqa",
    "llava-pretrain",
    "llava-instruct-150k",
    "mantis-instruct",
    "grit",
    "science-qa",
    "refcoco",
    "refcocog",
    "rlaif-v",
    "aishell1-zh-mini",
]


@pytest.mark.parametrize(
    ("text", "path", "subset", "split", "count", "weight"),
    [
        ("org/name", "hf::org/name", None, "train", None, None),
        ("hf::org/name:sub/test#2000", "hf::org/name", "sub", "test", 2000, None),
        ("ms::org/name-1.0:sub", "ms::org/name-1.0", "sub", "train", None, None),
        ("org/name:/train[:10%]", "hf::org/name", None, "train[:10%]", None, None),
        ("0.7 org/name#5", "hf::org/name", None, "train", 5, 0.7),
        ("alpaca-en#500", "hf::vicgalle/alpaca-gpt4", None, "train", 500, None),
        ("ms::alpaca-en", "ms::AI-ModelScope/alpaca-gpt4-data-en", None, "train", None, None),
        ("ms-agent", "ms::iic/ms_agent", None, "train", None, None),
        ("fineweb:sample-100BT", "hf::HuggingFaceFW/fineweb", "sample-100BT", "train", None, None),
        ("data/*.jsonl#3", "data/*.jsonl", None, "train", 3, None),
    ],
)
def test_names(text: str, path: str, subset: str | None, split: str, count: int | None, weight: float | None) -> None:
    found = parse_source(text)
    assert (found.path, found.subset, found.split, found.count, found.weight) == (path, subset, split, count, weight)


def test_what_is_there_as_a_file_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("alpaca-en", "a#5", "1 a.jsonl", "a:b.jsonl"):
        Path(name).write_text("{}")
    assert parse_source("alpaca-en").path == "alpaca-en"
    assert parse_source("hf::alpaca-en").path == "hf::vicgalle/alpaca-gpt4"
    assert (parse_source("a#5").path, parse_source("a#5#2").count) == ("a#5", 2)
    assert parse_source("a:b.jsonl").path == "a:b.jsonl"
    assert parse_source("1 a.jsonl").weight is None


def test_a_file_has_no_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(UserError, match="is on this machine, where it has neither subset nor split"):
        parse_source(f"{tmp_path}/a.jsonl:train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("org/name#many", "`#many` is no number of rows"),
        ("org/name#0", "`#0` is no number"),
        ("0 org/name", "must be above 0"),
        ("alpaca-em", "did you mean `alpaca-en`"),
        ("data/chat.jsonl", "is no file"),
        ("chat.jsonl", "is no file"),
        ("a/b/c", "is no file"),
        ("::x", "neither a file nor a data set"),
        ("hf::ms-agent", "not on the hub `hf::`.\n.*ms::ms-agent"),
        ("science-qa", "cannot be read as they are: the answer is the number of a choice"),
    ],
)
def test_wrong_names(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_source(text)


def test_the_registry_has_the_table_of_the_paper() -> None:
    assert list(DATA_SETS)[: len(TABLE_13)] == TABLE_13


@pytest.mark.parametrize("name", DATA_SETS)
def test_entries(name: str) -> None:
    entry = DATA_SETS[name]
    ids = [id for id in (entry.hf, entry.ms) if id]
    assert ids and all(map(is_id, ids))
    assert set(entry.columns.values()) <= COLUMNS
