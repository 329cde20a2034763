"""The console: one line per thing said, rank 0 only, and progress that is legible in a log file."""

import io

import pytest

from swift_mega.base import console


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    console.say("from rank 1")
    with console.progress(10, "silent") as bar:
        bar.update(10)
        bar.set_status("loss 1.0")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    console.say("from rank 0")
    assert capsys.readouterr().out == "from rank 0\n"


def test_a_log_file_gets_whole_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "LOG_INTERVAL_S", 0.0)
    with console.progress(4e9, "copy", unit="B", unit_scale=True) as bar:
        bar.update(1e9)
        bar.set_status("shard 2")
        bar.update(3e9)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "\r" not in "".join(lines)
    assert lines[0].startswith("copy: 25% 1.00G/4.00 GB, ") and lines[0].endswith(" left")
    assert lines[2].startswith("copy: 100% 4.00G/4.00 GB, done in ") and lines[2].endswith(", shard 2")


def test_a_log_is_not_flooded(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(10_000, "train", unit="step") as bar:
        for _ in range(10_000):
            bar.update()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_failed_job_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console.progress(2, "train"):
        raise KeyError("stop")
    assert "done" not in capsys.readouterr().err


def test_a_job_that_stops_early_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(4, "train", unit="step") as bar:
        bar.update(1)
    assert capsys.readouterr().err == "train: 25% 1/4 step, stopped after 00:00\n"


def test_a_resumed_job_reports_only_its_own_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr(console, "LOG_INTERVAL_S", 1.0)
    with console.progress(100, "train", unit="step", initial=90) as bar:
        bar.update(4)
    assert capsys.readouterr().err.startswith("train: 94% 94/100 step, 2 step/s, 00:03 left\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_status_stands_below_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with console.progress(2, "train", unit="step") as bar:
        bar.set_status("loss 1.0")
        bar.update(2)
    above, below = terminal.getvalue().rstrip("\n").split("\n")[-2:]
    assert "train: 100%" in above and below.endswith("loss 1.0")


def test_counted() -> None:
    assert [console.counted(number, "row") for number in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
