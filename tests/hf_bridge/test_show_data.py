"""`bridge show-data`, as a person types it."""

import json
from pathlib import Path

import pytest

from swift_mega.cli.main import main
from tests.support import newcomer

CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
PAIR = {"prompt": "Best colour?", "chosen": "Blue.", "rejected": "None."}
NO_ANSWER = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I", "loss": False}]}


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    newcomer.tiny_model(tmp_path / "model")
    lines = "\n".join(map(json.dumps, (CHAT, PAIR, NO_ANSWER)))
    (tmp_path / "chat.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))  # where rows are cached
    options = ["--dataset", str(tmp_path / "chat.jsonl"), "--shuffle", "false"]
    return ["bridge", "show-data", "--model", str(tmp_path / "model"), *options]


def test_rows_are_shown_and_measured(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--template", "plain", "--max-length", "3"]) == 0
    out = capsys.readouterr().out
    assert "row 1 of 3" in out and "⟦1│4" in out
    assert "── chosen" in out and "── rejected" in out and "⟦1│None." in out
    assert "cannot be trained on: nothing in the row is trained on" in out
    assert "2 rows longer than --max-length 3" in out
    assert "1 row cannot be trained on: nothing in the row is trained on." in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "--count is 0"),
        (["--template", "chatlm"], "did you mean `chatml`?"),
        (["--dataset", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--loss-scale", "lats_round"], "lats_round"),
    ],
)
def test_mistakes_are_one_message(
    options: list[str], message: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_bridge_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bridge"]) == 0
    assert "bridge show-data" in capsys.readouterr().out
    assert main(["bridge", "show"]) == 2
    assert "did you mean `show-data`?" in capsys.readouterr().err
