"""One launch of torchrun for all distributed cases of a session.

Starting a process and importing torch and megatron costs about 8 CPU-seconds, a case on a tiny model a
fraction of one. So the processes stay: each case gets a fresh world of the size it asks for, among the
first ranks, and leaves it again.

    def case(path, parallel):            # a function of an importable module; runs on every rank
        groups.initialize(...)
        return something that can be pickled

    results = distributed(case, 4, path, parallel)     # one entry per rank
"""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
START_S = 150
"""More for the first case: until all processes have imported torch and megatron on a busy machine."""


MOST_CASES = 60
"""Every world that gloo leaves keeps three threads that poll; after some hundred they take a core for themselves."""


class Failed(AssertionError):
    """A rank raised, died or did not answer; holds its traceback."""


class Workers:
    """`size` processes under `torch.distributed.run`, started anew after a case that hung and after many cases.

    Cases and results travel as files, as the store takes 8 MB at most; the store says when they are there.

    Args:
        size: most ranks that a case can ask for.
        folder: for cases, results, and the log of what the processes print.
    """

    def __init__(self, size: int, folder: Path) -> None:
        self.size = size
        self.folder = folder
        self.log = folder / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._store: Any = None
        self._cases = 0

    def __call__(
        self, function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120, **kwargs: Any
    ) -> list[Any]:
        """Run `function(*args, **kwargs)` on `world_size` ranks and return what each returned.

        Raises:
            Failed: with the traceback of the first rank that raised, or the end of the log.
        """
        assert world_size <= self.size, f"{world_size} ranks of {self.size}"
        if self._cases >= MOST_CASES:
            self.close()
        if self._process is None:
            self._start()
            timeout_s += START_S
        number, self._cases = self._cases, self._cases + 1
        self._send(number, (function.__module__, function.__qualname__, world_size, args, kwargs))
        outcomes = [self._outcome(number, rank, time.monotonic() + timeout_s) for rank in range(world_size)]
        for rank, (worked, value) in enumerate(outcomes):
            if not worked:
                raise Failed(f"rank {rank} of {world_size}:\n{value}")
        return [value for _, value in outcomes]

    def close(self) -> None:
        """End the processes."""
        if self._process is not None:
            self._send(self._cases, None)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._stop()
        self._process = None

    def _send(self, number: int, case: tuple[Any, ...] | None) -> None:
        file = self.folder / f"case-{number}"
        file.write_bytes(pickle.dumps(case))
        self._store.set(f"case/{number}", str(file))

    def _start(self) -> None:
        from torch._C._distributed_c10d import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._cases = 0
        launch = f"-m torch.distributed.run --standalone --nproc-per-node={self.size}"
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, *launch.split(), "-m", "tests.support.worker", str(self._store.port)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def _stop(self) -> None:
        """torchrun ends its children when it is told to end."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=60)
        self._process = None

    def _outcome(self, number: int, rank: int, deadline: float) -> tuple[bool, Any]:
        """Whether the rank's function returned, and its value or traceback. Another rank's failure ends the wait."""
        assert self._process is not None
        key = f"result/{number}/{rank}"
        while not self._store.check([key]):
            failed_elsewhere = self._store.check([f"failure/{number}"])
            if failed_elsewhere:
                # The others wait for the rank that raised; give them a moment, then end them all.
                deadline = min(deadline, time.monotonic() + 2)
            if self._process.poll() is not None or time.monotonic() > deadline:
                why = self._store.get(f"failure/{number}").decode() if failed_elsewhere else self._end_of_log()
                if self._process.poll() is None:
                    self._stop()
                self._process = None
                raise Failed(f"no answer from rank {rank}; the processes were ended.\n{why}")
            time.sleep(0.005)
        file = Path(self._store.get(key).decode())
        outcome: tuple[bool, Any] = pickle.loads(file.read_bytes())
        file.unlink()
        return outcome

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]
