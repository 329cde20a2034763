"""Pieces of work given to a pool of processes, and their results in the order of the pieces."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from swift_mega.base.errors import UserError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

PIECES_AHEAD = 3
"""Per worker: enough that none waits for the writer, little enough that memory stays at a few megabytes each."""


def useful_workers(wanted: int | None, pieces: int) -> int:
    """Not more processes than pieces: starting one takes as long as a piece. None: one per core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted or cores, pieces))


@contextlib.contextmanager
def in_order(
    work: Callable[[Piece], Result], workers: int, start: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[Callable[[Iterable[Piece]], Iterator[Result]]]:
    """A `map` over a pool of `workers`, each of which has run `start(*arguments)` first.

    Raises:
        UserError: a worker was killed.
    """
    # Forked where that is sound, so that a worker starts with everything loaded and without importing the caller's
    # script again, which may be a heavy one.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (start, arguments))
    try:
        pool.submit(os.getpid).result()  # starts them all now, while this process has no second thread
        yield lambda pieces: _in_order(pool, work, pieces, workers * PIECES_AHEAD)
    except BrokenProcessPool:
        raise UserError("a working process was killed, most likely for memory.", "Use fewer `--workers`.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: concurrent.futures.Executor, work: Callable[[Piece], Result], pieces: Iterable[Piece], ahead: int
) -> Iterator[Result]:
    """At most `ahead` pieces are on their way."""
    pending: deque[concurrent.futures.Future[Result]] = deque()
    for piece in pieces:
        pending.append(pool.submit(work, piece))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _start_worker(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    """A pool's workers do not notice that their parent was killed; without this they would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
