"""The launcher: exit codes, a dead rank, signals. The ranks are a few lines of plain Python, without torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local

LAUNCH = "import sys; from launch import local; sys.exit(local.run_command(sys.argv[2:], int(sys.argv[1])))"


def launch(nproc: int, program: str, **options: object) -> subprocess.Popen[str]:
    """`program` as `nproc` ranks, from a process of its own as a user would start it."""
    command = [sys.executable, "-c", LAUNCH, str(nproc), sys.executable, "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)  # type: ignore[call-overload]


def test_ranks_get_torchruns_environment() -> None:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "PYTHONSAFEPATH"]
    program = f"import os; os.write(1, (' '.join(os.environ[n] for n in {names}) + '\\n').encode())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    out, _ = launch(2, program, env=environment).communicate(timeout=20)
    threads = local.threads_per_process(2)
    assert sorted(out.splitlines()) == [f"{rank} {rank} 2 2 127.0.0.1 {threads} 1" for rank in (0, 1)]


def test_threads_fill_the_machine_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [local.threads_per_process(n) for n in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]


def test_success_is_zero() -> None:
    assert launch(3, "pass").wait(20) == 0


def test_the_first_failure_decides_and_ends_the_others() -> None:
    program = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"
    start = time.monotonic()
    job = launch(3, program)
    _, err = job.communicate(timeout=30)
    assert (job.returncode, err) == (7, "")
    assert time.monotonic() - start < 10


def test_a_killed_rank_ends_all_and_is_named(tmp_path: Path) -> None:
    program = f"import os, time; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(60)"
    job = launch(3, program)
    pids = [_content(tmp_path / str(rank)) for rank in range(3)]
    os.kill(pids[1], signal.SIGKILL)
    start = time.monotonic()
    _, err = job.communicate(timeout=30)
    assert time.monotonic() - start < 5
    assert job.returncode == 128 + signal.SIGKILL
    assert err.startswith("Rank 1 was ended by SIGKILL") and len(err.splitlines()) == 1
    assert not any(_alive(pid) for pid in pids)


def test_ranks_deaf_to_sigterm_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "KILL_AFTER_S", 0.5)
    program = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid()));"
        f"time.sleep(60) if os.environ['RANK'] == '0' else None\n"
        f"while not os.path.exists(r'{tmp_path}/0'): time.sleep(0.01)\n"
        "sys.exit(3)"
    )
    assert local.run_command([sys.executable, "-c", program], 2) == 3
    assert not _alive(_content(tmp_path / "0"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_every_rank_which_may_finish(tmp_path: Path, number: signal.Signals) -> None:
    program = f"""
import os, signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    open(os.path.join(r'{tmp_path}', 'saved' + os.environ['RANK']), 'w').write(str(number))
    sys.exit(0)
signal.signal(signal.{number.name}, save)
open(os.path.join(r'{tmp_path}', os.environ['RANK']), 'w').write(str(os.getpid()))
time.sleep(60)
"""
    job = launch(2, program)
    for rank in range(2):
        _content(tmp_path / str(rank))
    job.send_signal(number)
    assert job.wait(20) == 0
    assert [_content(tmp_path / f"saved{rank}") for rank in range(2)] == [number, number]


def test_ctrl_c_without_a_handler_is_130_or_the_signal(tmp_path: Path) -> None:
    program = f"import os, time; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(60)"
    job = launch(2, program)
    for rank in range(2):
        _content(tmp_path / str(rank))
    job.send_signal(signal.SIGINT)
    assert job.wait(20) == 130


def test_one_message_whichever_ranks_fail() -> None:
    program = """
import os, sys, time
from swift_mega.base.errors import UserError
from swift_mega.base.failures import explained
with explained() as outcome:
    if os.environ["RANK"] == "1":
        raise UserError("the shard is truncated.", "Download it again.")
    time.sleep(0.5)
    raise RuntimeError("Connection closed by peer")
sys.exit(outcome.exit_code)
"""
    job = launch(3, program)
    _, err = job.communicate(timeout=30)
    assert err == "the shard is truncated.\n  → Download it again.\n"
    assert job.returncode == 2


def test_the_exit_code_is_that_of_the_rank_that_knows_the_cause() -> None:
    program = """
import os, sys, time
from swift_mega.base.errors import PeerLost, UserError
from swift_mega.base.failures import explained
with explained() as outcome:
    if os.environ["RANK"] == "0":
        raise UserError("the disk is full.", "Free some space.")
    raise PeerLost("Connection closed by peer")
if os.environ["RANK"] == "0":
    time.sleep(5)  # rank 0 ends last: torch takes its time to unload
sys.exit(outcome.exit_code)
"""
    job = launch(2, program)
    _, err = job.communicate(timeout=30)
    assert err == "the disk is full.\n  → Free some space.\n"
    assert job.returncode == 2


def test_what_a_killed_rank_had_started_is_ended_too(tmp_path: Path) -> None:
    program = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "60"])
open(os.path.join(r'{tmp_path}', os.environ['RANK']), 'w').write(str(os.getpid()))
open(os.path.join(r'{tmp_path}', 'child' + os.environ['RANK']), 'w').write(str(child.pid))
time.sleep(60)
"""
    job = launch(2, program)
    children = [_content(tmp_path / f"child{rank}") for rank in range(2)]
    os.kill(_content(tmp_path / "1"), signal.SIGKILL)
    job.communicate(timeout=30)
    assert not any(_alive(child) for child in children)


def test_a_killed_launcher_takes_its_ranks_with_it(tmp_path: Path) -> None:
    program = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    job = launch(2, program)
    pids = [_content(tmp_path / str(rank)) for rank in range(2)]
    job.kill()
    job.communicate(timeout=5)  # to the end of the output, which the ranks hold open as long as they live
    deadline = time.monotonic() + 5  # a process closes its files a moment before it is gone
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_alive(pid) for pid in pids)


def test_a_rank_whose_launcher_is_gone_before_it_could_ask_ends_at_once() -> None:
    somebody_else = 1
    rank = subprocess.Popen([sys.executable, "-c", "pass"], preexec_fn=local._ends_with(somebody_else))
    assert rank.wait(20) == -signal.SIGKILL


def _content(path: Path) -> int:
    """The number in `path`, as soon as it is there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.01)
    raise TimeoutError(path)


def _alive(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
