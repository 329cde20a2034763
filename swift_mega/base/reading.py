"""Files that cannot be read: the system's refusals in the words of the person who can mend them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swift_mega.base.errors import UserError

REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR),  # gone, or a folder where a file should be
)
BROKEN = (errno.EIO, errno.ESTALE)


@contextmanager
def read_errors_are_the_users(path: str | Path) -> Iterator[None]:
    """Turn "permission denied" and the like while `path` is read into a message with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSED + BROKEN:
            raise
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise UserError(
            f"{path} cannot be read: {error.strerror}{where}.",
            "Look at the disk that holds it." if error.errno in BROKEN else "Change its permissions, or give another.",
        ) from None
