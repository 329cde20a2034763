"""Ranks that die, runs that are killed or told to stop: they end soon, and the same command goes on from there.

Real processes on two ranks, each start after the other in one output folder, since each costs ten CPU-seconds:
SIGTERM, `kill -9` of one rank between two steps, `kill -9` of the launcher during a save, and to the end.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters import checkpoint as layout
from swift_mega.base import config as configs
from swift_mega.base import metrics
from swift_mega.methods.config import PretrainConfig
from swift_mega.methods.output import resume_folder
from tests.support import cli
from tests.support.runs import values
from tests.train.test_resume import different_tensors

STEPS = 16
SURVIVORS_END_WITHIN_S = 30


def command(base: dict[str, Any], output: Path, *options: str) -> list[str]:
    """A run of `STEPS` steps with dropout on two data-parallel ranks, saved after each step."""
    file = output.parent / "run.yaml"
    config = {
        **base,
        "model": {**base["model"], "hidden_dropout": 0.1},
        "data": {**base["data"], "num_workers": 1},
        "train": {**base["train"], "steps": STEPS, "global_batch_size": 8, "eval_batches": 0},
        "checkpoint": {"save_interval_steps": 1},
    }
    file.write_text(json.dumps(config))
    return ["pretrain", str(file), "--output", str(output), *options]


@pytest.fixture(scope="module")
def never_killed(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("never-killed") / "out"
    assert cli.run(command(base, output, "--nproc", "2")).code == 0
    return output


@pytest.mark.timeout(600)
def test_killed_and_stopped_runs_end_where_undisturbed_ones_do(
    base: dict[str, Any], never_killed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    argv = command(base, output, "--nproc", "2")

    stopped = started(argv, lambda: steps(output) >= 2)
    stopped.send_signal(signal.SIGTERM)
    ended = cli.finish(stopped)
    assert ended.code == 0, ended
    assert "received SIGTERM. The same command continues." in ended.out
    reached = saved_step(output)
    assert 2 <= reached < STEPS and not unfinished(output)

    one_dead = started(argv, lambda: steps(output) > reached + 1)
    at = time.monotonic()
    os.kill(rank_pid(one_dead.pid, 1), signal.SIGKILL)
    ended = cli.finish(one_dead)
    assert time.monotonic() - at < SURVIVORS_END_WITHIN_S
    assert ended.code == 128 + signal.SIGKILL, ended
    assert ended.err.count("Rank 1 was ended by SIGKILL") == 1 and "Traceback" not in ended.err
    assert reached < saved_step(output) < STEPS

    reached = saved_step(output)
    in_a_save = started(argv, lambda: saved_step(output) > reached and any(half_written(output)))
    everything = cli.descendants(in_a_save.pid)
    in_a_save.kill()
    in_a_save.communicate(timeout=SURVIVORS_END_WITHIN_S)
    assert len(everything) == 4, "two ranks, a reader each"
    cli.wait_for_end(everything, SURVIVORS_END_WITHIN_S)
    assert saved_step(output) < STEPS
    assert all(layout.is_iteration(folder) for folder in layout.iterations(output / "checkpoints"))

    ended = cli.run(argv)
    assert ended.code == 0 and "Resumed from" in ended.out, ended
    assert not unfinished(output)
    for series in ("loss", "grad_norm", "lr"):
        assert values(output, series) == values(never_killed, series)
    both = (layout.latest(folder / "checkpoints") for folder in (output, never_killed))
    assert different_tensors(*both) == []


def test_ctrl_c_reaches_every_process_and_still_saves(base: dict[str, Any], tmp_path: Path) -> None:
    """One process and its reader, in the foreground of a terminal: both get the signal."""
    output = tmp_path / "out"
    running = started(command(base, output), lambda: steps(output) >= 2)
    os.killpg(running.pid, signal.SIGINT)
    ended = cli.finish(running)
    assert ended.code == 0 and "Traceback" not in ended.err, ended
    assert "received SIGINT. The same command continues." in ended.out
    assert 2 <= saved_step(output) < STEPS


def test_a_second_start_in_the_same_folder_is_refused_until_the_first_is_gone(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both under a launcher; the first is killed with `kill -9` and leaves its data workers to find out themselves."""
    monkeypatch.setattr("swift_mega.base.lock.WAIT_S", 0)
    output = tmp_path / "out"
    argv = command(base, output)
    first = started([*argv, "--nproc", "2"], lambda: steps(output) >= 1)
    os.kill(rank := rank_pid(first.pid, 0), signal.SIGSTOP)  # so that it writes nothing meanwhile
    before = tree(output)
    refused = cli.in_process(argv)
    assert tree(output) == before
    os.kill(rank, signal.SIGCONT)
    cli.assert_explained(refused, f"out is in use by process {rank} on {socket.gethostname()}", "stop it, or choose")

    os.kill(rank, signal.SIGKILL)
    monkeypatch.undo()  # it may wait for the kill to be over
    assert cli.in_process([*argv, "--stop-after-steps", "1"]).code == 0
    cli.finish(first)


def tree(folder: Path) -> list[tuple[str, int]]:
    """Everything below a folder, with the time of its last change."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_torchrun_names_a_dead_rank(base: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "out"
    running = started(command(base, output), lambda: steps(output) >= 2, cli.TORCHRUN)
    at = time.monotonic()
    victim = next(pid for pid in cli.descendants(running.pid) if environment(pid).get("RANK") == "1")
    os.kill(victim, signal.SIGKILL)
    ended = cli.finish(running)
    assert time.monotonic() - at < SURVIVORS_END_WITHIN_S
    assert ended.code == 1
    assert "exitcode  : -9" in ended.err and "rank      : 1" in ended.err
    # The only traceback is torchrun's own; the survivor says in one line that it lost its peer.
    assert ended.err.count("Traceback") == 1, ended.err


def test_a_checkpoint_being_removed_or_replaced_is_never_taken_for_a_whole_one(
    never_killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(never_killed / "checkpoints", tmp_path / "checkpoints")
    before = layout.iterations(root)
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **_: killed_half_way(folder))
    with pytest.raises(Killed):
        layout.remove(before[0])
    assert layout.iterations(root) == before[1:]


def test_a_kill_before_the_first_tracker_loses_nothing(never_killed: Path, tmp_path: Path) -> None:
    root = shutil.copytree(never_killed / "checkpoints", tmp_path / "checkpoints")
    values = {"output": str(tmp_path), "model": {"path": "x"}, "train": {"steps": 1}}
    config = configs.build(PretrainConfig, values)
    (root / layout.TRACKER).unlink()
    assert resume_folder(config) == layout.iterations(root)[-1]
    shutil.rmtree(root)
    assert resume_folder(config) is None


class Killed(Exception):
    """Stands for a kill."""


def killed_half_way(folder: Path) -> None:
    """What `rmtree` has done when it is killed: one file is gone."""
    for file in folder.glob("*.distcp"):
        file.unlink()
        raise Killed


def started(argv: list[str], happened: Callable[[], bool], program: list[str] | None = None) -> "subprocess.Popen[str]":
    """The command, running, when `happened` is true."""
    process = cli.start(argv, program or [sys.executable, "-m", "swift_mega"])
    cli.wait_for(happened, process)
    return process


def steps(output: Path) -> int:
    """The last step in the metrics."""
    return max((line["step"] for line in metrics.read(output)), default=0)


def saved_step(output: Path) -> int:
    """The step that a start would continue from."""
    tracker = output / "checkpoints" / layout.TRACKER
    return int(tracker.read_text()) if tracker.exists() else 0


def unfinished(output: Path) -> list[Path]:
    """What a kill has left half done."""
    return list((output / "checkpoints").glob(f"*{layout.UNFINISHED}"))


def half_written(output: Path) -> list[Path]:
    """Data files of a checkpoint that is being written."""
    return list((output / "checkpoints").glob(f"*{layout.UNFINISHED}/*.distcp"))


def rank_pid(launcher: int, rank: int) -> int:
    """The process that our launcher has started as that rank."""
    return next(pid for pid in cli.descendants(launcher) if environment(pid).get("RANK") == str(rank))


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)
