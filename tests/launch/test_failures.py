"""A real run of two processes that is killed, stopped or told something impossible: one message, and soon."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from swift_mega.data.indexed import IndexedWriter
from tests.support import newcomer

pytestmark = pytest.mark.slow

ALL_ENDED_S = 30
"""However a run ends badly, all its processes are gone within this many seconds."""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and a token file for it."""
    folder = tmp_path_factory.mktemp("material")
    newcomer.tiny_model(folder / "model")
    dtype = np.dtype(np.uint16)
    with (folder / "data.bin").open("wb") as binary:
        writer = IndexedWriter(binary, dtype)
        tokens = np.random.default_rng(0).integers(0, 300, 4000).astype(dtype)
        writer.add(tokens.tobytes(), np.full(100, 40, np.int32))
    writer.write_index(folder / "data.idx")
    return folder


@pytest.fixture
def job(material: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that would take hours, stepping since at least one step."""
    options = f"--model.path {material / 'model'} --data.train {material / 'data'} --sequence-length 32 --steps 100000"
    command = [sys.executable, "-m", "swift_mega", "pretrain", "--output", str(tmp_path / "run"), "--nproc", "2"]
    command += [*options.split(), "--tensor-model-parallel-size", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.exists() and '"loss"' in metrics.read_text()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)
    yield process
    process.kill()


def ranks(job: subprocess.Popen[str]) -> dict[int, int]:
    """Rank → process id of the processes that `job` has started."""
    found = {}
    for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        found[next(int(entry[5:]) for entry in environment if entry.startswith("RANK="))] = int(pid)
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run(job: subprocess.Popen[str], rank: int) -> None:
    pids = ranks(job)
    os.kill(pids[rank], signal.SIGKILL)
    _, err = job.communicate(timeout=ALL_ENDED_S)
    assert job.returncode == 128 + signal.SIGKILL
    assert f"Rank {rank} was ended by SIGKILL" in err and "Traceback" not in err
    assert alive(list(pids.values())) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_is_saved(job: subprocess.Popen[str], number: signal.Signals, tmp_path: Path) -> None:
    pids = list(ranks(job).values())
    job.send_signal(number)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert f"received {number.name}" in out and "Traceback" not in err
    assert int((tmp_path / "run" / "checkpoints" / "latest_checkpointed_iteration.txt").read_text()) > 0
    assert alive(pids) == []


def test_a_layout_that_does_not_fit_is_one_message_under_torchrun(material: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "swift_mega", "pretrain", "--output", str(tmp_path / "run"), "--steps", "1"]
    command += ["--model.path", str(material / "model"), "--sequence-length", "32", "--pipeline-model-parallel-size"]
    done = subprocess.run([*command, "3"], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert done.stderr.count("3 does not divide 4 layers") == 1
    # The only traceback is torchrun's own, which it prints when a child fails.
    assert "exitcode  : 2" in done.stderr and done.stderr.count("Traceback") == 1
    assert not (tmp_path / "run").exists()
