"""One command on several processes of this machine: what `--nproc N` does.

The processes find each other by the same environment variables that torchrun sets, so a program
cannot tell which of the two started it. torchrun stays the way to more than one machine. On one, this
launcher is torch-free (importing torch's takes 2.5 CPU-s), gives the ranks as long as they need to
save after Ctrl-C but no more than `KILL_AFTER_S` once one of them has failed (elastic has one such
time, 30 s after a failure), passes on the exit code of the rank that failed, and takes the ranks with
it when it is killed itself.
"""

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from swift_mega.base import failures

KILL_AFTER_S = 15.0
"""Seconds the other ranks have to end after one has failed."""

REAP_S = 5.0
"""Seconds a killed rank may hang in the kernel before it is left there."""

POLL_S = 0.05

PR_SET_PDEATHSIG = 1
"""From `linux/prctl.h`: the signal that this process gets when its parent ends."""


def run(argv: list[str], nproc: int) -> int:
    """Run `python -m swift_mega ARGV` as `nproc` ranks; 0, or the exit code of the rank that said why it failed."""
    # -P: a child must not find a user's own `launch/` or `converters/` in the working directory.
    return run_command([sys.executable, "-P", "-m", "swift_mega", *argv], nproc)


def run_command(command: list[str], nproc: int) -> int:
    """Run `command` as `nproc` ranks of one job; the exit code is `run`'s.

    SIGINT, SIGTERM and SIGHUP go to every rank, which may take its time to save. Call it from the
    main thread. A rank ended by signal N counts as 128 + N, as in a shell.
    """
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="swift-mega-") as folder, _forwarding(ranks) as received:
        environment = _environment(nproc, folder)
        try:
            for rank in range(nproc):
                ranks.append(_start(command, environment, rank))
            failed = _first_failure(ranks)
            if failed is None:
                return 0
            code = ranks[failed].returncode
            if code < 0 and -code not in received and failures.claim_report(Path(folder), 128 - code):
                _say_killed(failed, signal.Signals(-code))
            _end(ranks, signal.SIGTERM, KILL_AFTER_S)
            return failures.reported_exit_code(Path(folder)) or (code if code > 0 else 128 - code)
        finally:
            _end(ranks, signal.SIGKILL, REAP_S)


def threads_per_process(nproc: int) -> int:
    """CPU threads for each of `nproc` processes such that together they fill the machine."""
    return max(1, len(os.sched_getaffinity(0)) // nproc)


def _environment(nproc: int, folder: str) -> dict[str, str]:
    return {
        # torch would start one thread per core in every process: N times too many.
        "OMP_NUM_THREADS": str(threads_per_process(nproc)),
        **os.environ,
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "PYTHONSAFEPATH": "1",
        failures.REPORT_FOLDER: folder,
    }


def _free_port() -> int:
    """A port nobody listens on, below the range from which the kernel serves outgoing connections.

    Rank 0 binds it seconds later; a port the kernel itself had picked could be given away until then.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def _start(command: list[str], environment: dict[str, str], rank: int) -> subprocess.Popen[bytes]:
    # A session of its own: the terminal's Ctrl-C reaches a rank once, through us, and its data workers
    # not at all; and whatever the rank has started can be ended with it.
    return subprocess.Popen(
        command,
        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        start_new_session=True,
        preexec_fn=_ends_with(os.getpid()),
    )


def _ends_with(launcher: int) -> Callable[[], None]:
    """What a rank does before it becomes its command, so that `kill -9` of the launcher alone does not leave it behind.

    SIGKILL, as a rank that waits for another would not act on less. It stands from the moment that the *thread*
    which started the rank ends, hence "from the main thread" above.
    """
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec a lock of the loader may be held by nobody alive

    def ask_the_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it has gone already
            os.kill(os.getpid(), signal.SIGKILL)

    return ask_the_kernel


@contextmanager
def _forwarding(ranks: list[subprocess.Popen[bytes]]) -> Iterator[set[int]]:
    """Inside, the signals that end a job go on to every rank; yields the set of those received."""
    received: set[int] = set()

    def forward(number: int, frame: FrameType | None) -> None:
        received.add(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    # A signal that is ignored stays so: that is how `nohup` keeps a job alive.
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    caught = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in caught:
        signal.signal(number, forward)
    try:
        yield received
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


def _first_failure(ranks: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until a rank fails, and return it, or until all have ended well."""
    while True:
        codes = [process.poll() for process in ranks]
        if any(codes):
            return next(rank for rank, code in enumerate(codes) if code)
        if None not in codes:
            return None
        time.sleep(POLL_S)


def _say_killed(rank: int, number: signal.Signals) -> None:
    cause = ", as the system does when memory runs out (see `dmesg`)" if number == signal.SIGKILL else ""
    print(f"Rank {rank} was ended by {number.name}{cause}. The other ranks are stopped.", file=sys.stderr, flush=True)


def _end(ranks: list[subprocess.Popen[bytes]], number: signal.Signals, within_s: float) -> None:
    """Send `number` to every rank still there and to all it has started, and wait for that at most `within_s`."""
    for process in ranks:
        # The group outlives its rank where that was killed and has left a process of its own behind.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(POLL_S)
