"""Images, videos and audios of rows that are there, that are not, and that come and go."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_bridge.data.config import RowsConfig
from hf_bridge.data.rows import Loaded, load_rows
from hf_bridge.data.stream import RowStream
from swift_mega.base.errors import UserError


def rows_of(folder: Path, *images: str) -> RowsConfig:
    """A configuration that reads a row for each image."""
    rows = [{"query": "<image>?", "response": "yes", "images": [image]} for image in images]
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = [str(folder / "data" / "rows.jsonl")]
    return RowsConfig(dataset=dataset, shuffle=False, cache_dir=str(folder / "cache"), workers=1, on_bad_row="skip")


def images(loaded: Loaded | RowStream) -> list[tuple[str, ...]]:
    return [row.images for row in (loaded.train if isinstance(loaded, Loaded) else loaded)]


def test_what_is_not_there_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("here.png", "data/beside.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    elsewhere = ["https://example.org/i.png", "file:///i.png", "data:image/png;base64,AAAA"]
    absolute, lost = str(tmp_path / "here.png"), ["lost.png", "\0", "A" * 100_000, str(tmp_path)]
    config = rows_of(tmp_path, "here.png", "beside.png", absolute, *elsewhere, *lost)
    beside = str(tmp_path / "data" / "beside.png")
    expected = [(image,) for image in ("here.png", beside, absolute, *elsewhere)]
    loaded = load_rows(config)
    assert images(loaded) == images(RowStream(config)) == expected
    assert dict(loaded.report.bad.reasons) == {"an image that is not there": len(lost)}
    assert loaded.report.bad.first[0].where == f"{config.dataset[0]}:7 (lost.png)"
    assert max(len(row.where) for row in loaded.report.bad.first) < 250
    config.on_bad_row = "raise"
    with pytest.raises(UserError, match=r"rows.jsonl:7 \(lost.png\), 8 .*: an image that is not there"):
        load_rows(config)


def test_media_come_and_go_while_rows_stay_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = rows_of(tmp_path, "late.png", "data:,x")
    assert len(images(load_rows(config))) == 1
    (tmp_path / "late.png").touch()
    assert len(images(load_rows(config))) == 2
    (tmp_path / "late.png").unlink()
    assert len(images(load_rows(config))) == 1


@pytest.mark.parametrize(("column", "name"), [("videos", "a video"), ("audios", "an audio")])
def test_videos_and_audios(column: str, name: str, tmp_path: Path) -> None:
    config = rows_of(tmp_path)
    row: dict[str, Any] = {"query": f"<{column[:-1]}>?", "response": "yes", column: ["lost"]}
    Path(config.dataset[0]).write_text(json.dumps(row), encoding="utf-8")
    config.on_bad_row = "raise"
    with pytest.raises(UserError, match=f"{name} that is not there"):
        load_rows(config)
