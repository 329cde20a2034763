"""Files that are written in one piece or not at all, and the system's refusals in the words of who can mend them."""

import errno
import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swift_mega.base.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
    errno.ENOENT,  # where the system lets nobody make a folder, such as /proc
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),  # a file where a folder should be, or the other way round
)


UNFINISHED = ".unfinished"
"""Suffix of a folder that something is written in before it gets its name."""


@contextmanager
def unfinished_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder in `parent`, so on the same disk that files can be renamed; gone afterwards, whatever happens.

    What a killed process of this machine has left under the same `name` goes, too.
    """
    parent.mkdir(parents=True, exist_ok=True)
    mine = f".{name}.{socket.gethostname()}-"
    for left in parent.glob(f"{glob.escape(mine)}*{UNFINISHED}"):
        pid = left.name.removeprefix(mine).partition(".")[0]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(UNFINISHED, f"{mine}{os.getpid()}.", parent) as folder:
        yield Path(folder)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


@contextmanager
def write_errors_are_the_users(path: str | Path, needed_bytes: int | None = None, option: str = "") -> Iterator[None]:
    """Turn "no space left" or "no permission" while writing under `path` into a message with the way out.

    Args:
        path: file or folder that is written.
        needed_bytes: of all that is to be written, where it is known.
        option: what names another place, such as `--output`.
    """
    try:
        yield
    except OSError as error:
        elsewhere = f"choose another {option or 'target'}"
        if error.errno in FULL:
            raise disk_full(path, needed_bytes, elsewhere) from None
        if error.errno in REFUSED:
            where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
            raise UserError(
                f"{path} cannot be written: {error.strerror}{where}.",
                f"Change its permissions or {elsewhere}.",
            ) from None
        raise


class DiskFull(UserError):
    """The error that `disk_full` makes."""


def disk_full(path: str | Path, needed_bytes: int | None = None, elsewhere: str = "choose another target") -> DiskFull:
    """The error for a disk that ran full, with the numbers of this moment."""
    needed = f", {needed_bytes:,} are needed" if needed_bytes else ""
    return DiskFull(
        f"the disk that holds {path} is full: {free_bytes(path):,} bytes are left{needed}.",
        f"Free space there or {elsewhere}. Nothing finished was written.",
    )


def free_bytes(path: str | Path) -> int:
    """What the disk has left that holds `path`, or will hold it."""
    whole = Path(path).absolute()
    disk = os.statvfs(next(folder for folder in (whole, *whole.parents) if folder.exists()))
    return disk.f_bavail * disk.f_frsize
