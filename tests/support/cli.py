"""The command line as a user starts it: in this process, as processes of this machine, under torchrun.

A mistake must end in one message on stderr, without a traceback, and with exit code 2.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from swift_mega.base import failures
from swift_mega.cli.main import main

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "swift_mega"]
LIMIT_S = 240
"""Of one command; processes start slowly on a busy machine."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def in_process(argv: Sequence[str], report_folder: str | None = None) -> Ended:
    """Run the command here. Ranks of one job share `report_folder`, as under a launcher."""
    out, err = io.StringIO(), io.StringIO()
    before = os.environ.get(failures.REPORT_FOLDER)
    if report_folder:
        os.environ[failures.REPORT_FOLDER] = report_folder
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(argv))
    finally:
        os.environ.pop(failures.REPORT_FOLDER, None)
        if before:
            os.environ[failures.REPORT_FOLDER] = before
    return Ended(code, out.getvalue(), err.getvalue())


def on_ranks(distributed: Callable[..., list[Ended]], argv: Sequence[str], world_size: int = 2) -> Ended:
    """Run the command as ranks of the session's workers; what all of them wrote, and the exit code of a launcher."""
    with tempfile.TemporaryDirectory() as folder:
        ended = distributed(in_process, world_size, list(argv), folder)
        code = failures.reported_exit_code(Path(folder)) or 0
    assert all(bool(rank.code) == bool(code) for rank in ended), ended
    return Ended(code, "".join(rank.out for rank in ended), "".join(rank.err for rank in ended))


def start(argv: Sequence[str], command: Sequence[str] = (sys.executable, "-m", "swift_mega")) -> subprocess.Popen[str]:
    """Start the command in processes of its own, and a session of its own so that all can be signalled."""
    return subprocess.Popen(
        [*command, *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> Ended:
    """Wait for a command that was started, and see that none of its processes is left."""
    ranks = descendants(process.pid)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            kill_all(process)
    left = [pid for pid in ranks if alive(pid)]
    assert not left, f"processes {left} outlived their command"
    return Ended(process.returncode, out, err)


def run(argv: Sequence[str], command: Sequence[str] = (sys.executable, "-m", "swift_mega")) -> Ended:
    """Start the command and wait for it."""
    return finish(start(argv, command))


def kill_all(process: "subprocess.Popen[str]") -> None:
    """`kill -9` of the command and of everything it has started."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and those they have."""
    parents = {int(stat.parent.name): _fields(stat) for stat in Path("/proc").glob("[0-9]*/stat")}
    found = [pid]
    for parent in found:
        found += [child for child, fields in parents.items() if fields[1:2] == [str(parent)]]
    return found[1:]


def alive(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    return _fields(Path(f"/proc/{pid}/stat"))[:1] not in ([], ["Z"])


def wait_for_end(pids: Iterable[int], within_s: float) -> None:
    """Processes close their files a moment before they are gone."""
    deadline, left = time.monotonic() + within_s, list(pids)
    while left := [pid for pid in left if alive(pid)]:
        assert time.monotonic() < deadline, f"still there after {within_s:.0f} s: {left}"
        time.sleep(0.01)


def _fields(stat: Path) -> list[str]:
    """State, parent and so on of a process; nothing where it has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return stat.read_text().rpartition(")")[2].split()
    return []


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[str]", poll_s: float = 0.002) -> None:
    """Wait until something shows that the command has come so far; fails with its words if it ends before."""
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            kill_all(process)
            raise AssertionError(f"the command ended before it got there: {finish(process)}")
        time.sleep(poll_s)


def assert_explained(ended: Ended, cause: str, way_out: str) -> None:
    """One message with cause and way out, no traceback, exit code 2."""
    assert ended.code == 2, ended
    assert_one_message(ended, cause, way_out)


def assert_one_message(ended: Ended, cause: str, way_out: str) -> None:
    """Cause and way out are said once, and nothing of a traceback."""
    assert "Traceback" not in ended.err, ended.err
    assert ended.err.count("  → ") == 1, ended.err
    before, _, after = ended.err.partition("  → ")
    assert cause in before, ended.err
    assert way_out in after, ended.err
