"""One process at a time in a folder, and the lock goes with its holder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swift_mega.base import lock
from swift_mega.base.errors import UserError

HOLD = """
import os, sys, time
from pathlib import Path
from swift_mega.base import lock
with lock.alone_in(Path(sys.argv[1]), "output"):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""
"""Goes in, forks a child that outlives it, as a data worker might, and says its pid."""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A process inside `tmp_path`, and its child."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    child = int(process.stdout.readline())
    yield process, child
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.communicate()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[OSError], None]:
    """Makes the file system answer so when it is asked for a lock."""

    def refuse(error: OSError) -> None:
        def lockf(*_: object) -> None:
            raise error

        monkeypatch.setattr(fcntl, "lockf", lockf)

    return refuse


def test_another_process_is_refused_with_the_name_of_the_first(
    tmp_path: Path, holder: tuple["subprocess.Popen[str]", int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.2)
    said = rf"is in use by process {holder[0].pid} on .*\n.*with `output`"
    with pytest.raises(UserError, match=said), lock.alone_in(tmp_path, "output"):
        pytest.fail("two are inside")


def test_kill_9_frees_it_though_a_forked_child_lives_on(
    tmp_path: Path, holder: tuple["subprocess.Popen[str]", int]
) -> None:
    process, child = holder
    process.kill()
    start = time.monotonic()
    with lock.alone_in(tmp_path, "output"):
        assert time.monotonic() - start < lock.WAIT_S
        os.kill(child, 0)  # it is there


def test_it_can_be_taken_again_after_it_was_left(tmp_path: Path) -> None:
    for _ in range(2):
        with lock.alone_in(tmp_path, "output"):
            assert (tmp_path / lock.FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_named_and_no_obstacle(
    tmp_path: Path, refused: Callable[[OSError], None], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(OSError(errno.ENOLCK, "No locks available"))
    with lock.alone_in(tmp_path, "output"):
        assert "cannot be locked (No locks available): see to it" in capsys.readouterr().out


def test_any_other_refusal_is_not_taken_for_that(tmp_path: Path, refused: Callable[[OSError], None]) -> None:
    refused(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"), lock.alone_in(tmp_path, "output"):
        pytest.fail("inside without a lock")
