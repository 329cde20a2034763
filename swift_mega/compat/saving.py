"""How megatron-core's `dist_checkpointing.save` writes, and how it and `load` fail.

It hands the results of its writers over through a queue of a process of their own, which serves
asynchronous saves. Ours are synchronous: the queue is filled and emptied by this process, so a plain
one does. That spares each rank a spawned process (2.5 s at the first save, measured on 2 cores), which
would also outlive a rank that is killed.

Before 0.19 it also forks a process for each file that a rank writes. Those would outlive a killed rank too, waiting
for ever on a queue with the rank's connections open, so that nobody notices its end; and a fork of a process with
threads can hang. From 0.19 on they are threads, and here they are that always.
"""

import errno
import importlib
import multiprocessing.dummy
import os
import queue
import tempfile
from collections.abc import Iterator
from pickle import UnpicklingError
from types import SimpleNamespace

from torch.distributed.checkpoint.api import CheckpointException

from swift_mega.compat.redirection import Redirection, replace

WRITERS = "megatron.core.dist_checkpointing.strategies.filesystem_async"

FAILURES = (CheckpointException, OSError, RuntimeError)
"""What a save raises when a file cannot be written: the first on every rank at once, the others on one rank alone."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SHORT_WRITE = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed", "inline_container")
"""What is left of "no space" when torch's zip writer (C++) has wrapped it, or a process boundary dropped its type."""

UNREADABLE = "PytorchStreamReader failed"


def told_to_all(error: BaseException) -> bool:
    """Whether every rank has this error, so that they can still talk to each other."""
    return isinstance(error, CheckpointException)


def is_disk_full(error: BaseException) -> bool:
    """Whether a save failed for lack of space. Rank 0 knows it of all ranks, another rank of itself."""
    return any(
        getattr(cause, "errno", None) in NO_SPACE or any(sign in str(cause) for sign in SHORT_WRITE)
        for cause in _causes(error)
    )


def is_damage(error: BaseException) -> bool:
    """Whether a load failed because a file holds other bytes than were saved."""
    return any(isinstance(cause, UnpicklingError) or UNREADABLE in str(cause) for cause in _causes(error))


def refusal(error: BaseException) -> OSError | None:
    """What the system said when a load failed because a file could not be read; None where that was not the cause."""
    return next((cause for cause in _causes(error) if isinstance(cause, OSError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, CheckpointException):
            for failure, _ in error.failures.values():
                yield from _causes(failure)
        error = error.__cause__ or error.__context__


def _use_plain_queue() -> None:
    replace(f"{WRITERS}._results_queue", queue.SimpleQueue())


def _plain_queue_fits() -> bool:
    """The queue that megatron would make is ours; what a writer puts in can be taken out at once."""
    writers = importlib.import_module(WRITERS)
    # Public since 0.17.
    make = getattr(writers, "_get_write_results_queue", None) or writers.get_write_results_queue
    made = make()
    made.put("probe")
    return isinstance(made, queue.SimpleQueue) and made.get_nowait() == "probe"


RESULTS = Redirection(
    name="results of checkpoint writers",
    library="megatron-core",
    why="each rank would start a process for asynchronous saves, and a killed rank would leave it behind",
    names=(f"{WRITERS}._results_queue",),
    apply=_use_plain_queue,
    probe=_plain_queue_fits,
)


def _use_threads() -> None:
    # The standard library's threads behind the interface of processes.
    replace(f"{WRITERS}.mp", SimpleNamespace(get_context=lambda method: multiprocessing.dummy))


class _Opened:
    """A file that says where it was opened."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.processes: list[int] = []

    def __fspath__(self) -> str:
        self.processes.append(os.getpid())
        return self.path


def _threads_fit() -> bool:
    """A file without tensors, written by megatron, is opened in this process."""
    writer = importlib.import_module(WRITERS).FileSystemWriterAsync
    results: queue.SimpleQueue[dict[int, list[object]]] = queue.SimpleQueue()
    with tempfile.NamedTemporaryFile() as file:
        opened = _Opened(file.name)
        writer.write_preloaded_data_multiproc([], False, 0, [(opened, "probe", ([], []))], results)
    return opened.processes == [os.getpid()] and results.get_nowait() == {0: []}


THREADS = Redirection(
    name="processes of checkpoint writers",
    library="megatron-core",
    why="a killed rank would leave them behind, and they its connections open",
    names=(f"{WRITERS}.mp", f"{WRITERS}.FileSystemWriterAsync.write_preloaded_data_multiproc"),
    apply=_use_threads,
    probe=_threads_fit,
)


def synchronous_saves() -> tuple[Redirection, ...]:
    """What the installed megatron-core needs."""
    forks = hasattr(importlib.import_module(WRITERS).FileSystemWriterAsync, "write_preloaded_data_multiproc")
    return (RESULTS, THREADS) if forks else (RESULTS,)
