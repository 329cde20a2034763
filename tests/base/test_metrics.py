"""Metrics survive a crash and a resume without a gap or a double line, and become a picture."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from swift_mega.base import metrics
from swift_mega.base.errors import UserError
from swift_mega.base.metrics import MetricsWriter, plot, read


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read(folder) if "loss" in line]


def train(folder: Path, first: int, last: int, **options: Any) -> None:
    writer = MetricsWriter(folder, resumed_step=first, **options)
    for step in range(first + 1, last + 1):
        writer.write(step, {"loss": 3.0 - step / 10, "lr": 1e-5, "grad_norm": 1.0 + step})


def test_a_resume_drops_what_will_be_done_again(tmp_path: Path) -> None:
    train(tmp_path, 0, 5, layout="TP2")
    train(tmp_path, 3, 6, layout="PP2")
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [(line["step"], line["start"]) for line in read(tmp_path) if "start" in line] == [(0, "TP2"), (3, "PP2")]


def test_a_start_from_nothing_keeps_nothing(tmp_path: Path) -> None:
    train(tmp_path, 0, 5)
    train(tmp_path, 0, 2)
    assert steps(tmp_path) == [1, 2]


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    train(tmp_path, 0, 2)
    with (tmp_path / metrics.FILE).open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert steps(tmp_path) == [1, 2]
    train(tmp_path, 2, 4)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_lines_are_on_disk_at_once_and_are_json(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": float("nan"), "lr": 1e-5})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / metrics.FILE).read_text().splitlines()]
    assert lines[-1]["loss"] is None and lines[-1]["lr"] == 1e-5


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    train(tmp_path / "run", 0, 2, tensorboard=True, wandb_project="unused")
    plot(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_what_we_write(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, 0, 5, tensorboard=True)
    train(tmp_path, 3, 6, tensorboard=True)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert sorted(accumulator.Tags()["scalars"]) == ["grad_norm", "loss", "lr"]
    assert [event.step for event in accumulator.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_wandb_continues_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    def init(**options: Any) -> Any:
        started.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    train(tmp_path, 0, 1, wandb_project="mine")
    train(tmp_path, 1, 2, wandb_project="mine")
    assert [start["project"] for start in started] == ["mine", "mine"]
    assert started[0]["id"] == started[1]["id"] and started[0]["resume"] == "allow"
    assert [step for step, _ in logged] == [1, 2]


def test_wandb_missing_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'swift-mega\[wandb\]'"):
        MetricsWriter(tmp_path, wandb_project="mine")


@pytest.mark.parametrize("last", [0, 1, 5, 60])
def test_a_run_of_any_length_becomes_a_picture(tmp_path: Path, last: int) -> None:
    train(tmp_path, 0, last, layout="TP2")
    MetricsWriter(tmp_path, resumed_step=last, layout="PP2").write(last, {"eval/loss": 2.0, "loss": float("inf")})
    plot(tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_only_a_run_on_rewards_has_a_picture_of_them(tmp_path: Path) -> None:
    for name, more in (("plain", {}), ("preferences", {"rewards/margins": 0.5, "logps/chosen": -3.0})):
        writer = MetricsWriter(tmp_path / name)
        for step in range(1, 9):
            writer.write(step, {"loss": 1.0 / step, **more})
        writer.write(8, {f"eval/{key}": number for key, number in more.items()} or {"eval/loss": 1.0})
        writer.close()
        plot(tmp_path / name)
    assert not (tmp_path / "plain" / "rewards.png").exists()
    assert (tmp_path / "preferences" / "rewards.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_keeps_a_constant_and_a_length() -> None:
    import numpy as np

    from swift_mega.base.plot import _smooth

    for length in (2, 6, 500):
        assert np.allclose(_smooth(np.full(length, 3.0)), np.full(length, 3.0))
