"""One process at a time in a folder, by a lock that the system takes back when its holder dies, however it dies.

It is a POSIX record lock (`fcntl`), not `flock`: forked data workers do not inherit it, so that none of them can
keep a run that was killed from being resumed, and NFS passes it on to the other machines. Between machines it is as
good as their file system: a client of NFS that lost power keeps its locks until the server's lease runs out (90 s by
default), and a mount with `nolock` sees only its own machine. Only who is inside may remove the file: others that
wait for it find that it is gone.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from swift_mega.base.console import say
from swift_mega.base.errors import UserError

FILE = ".lock"

WAIT_S = 5.0
"""A process that was just killed holds its locks until its memory is given back, which takes a while if it is much."""

POLL_S = 0.1

HELD = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems without locks say: NFS without lockd, Lustre mounted without `flock`."""


@contextmanager
def alone_in(folder: Path, option: str, wait_s: float = WAIT_S, name: str = FILE) -> Iterator[None]:
    """Inside, no other process of any machine is inside for the same folder, which must exist.

    Not for two threads of one process; that is no conflict to the system.

    Args:
        folder: on a file system without locks this is said, and nothing is guarded.
        option: what names another folder, such as `output`.
        wait_s: seconds to wait for another process. `math.inf` where it does what this one would do.
        name: of the file in the folder that is locked.

    Raises:
        UserError: another process is inside, and was not killed a moment ago.
    """
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context((folder / name).open("a+", encoding="utf-8"))
            try:
                _wait_for(file, folder, option, wait_s)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                say(f"{folder} cannot be locked ({error.strerror}): see to it that nothing else is started in it.")
                break
            if _is(file, folder / name):
                file.truncate(0)
                print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
                break
        yield


def is_held(file: Path) -> bool:
    """Whether another process is inside by the lock of this file. False, too, where the file system has no locks."""
    with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
        what = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            kind, *_ = struct.unpack(FLOCK, fcntl.fcntl(stream.fileno(), fcntl.F_GETLK, what))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
        return bool(kind != fcntl.F_UNLCK)
    return False


FLOCK = "hhqqi4x"
"""C's `struct flock`: kind, from where, first byte, length, process."""


def _is(file: IO[str], path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _wait_for(file: IO[str], folder: Path, option: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in HELD:
                raise
        if time.monotonic() > deadline:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by {file.read().strip() or 'another process'}.",
                f"Wait until that has ended, stop it, or choose another folder with `{option}`.",
            )
        time.sleep(POLL_S)
