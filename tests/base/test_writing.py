"""What the system refuses to write is said as something a person can mend; anything else stays a bug."""

import errno
import os
from pathlib import Path

import pytest

from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users


def refusal(path: Path, number: int, needed_bytes: int | None = None) -> str:
    """The message for an `errno`."""
    with pytest.raises(UserError) as caught, write_errors_are_the_users(path, needed_bytes, "`output`"):
        raise OSError(number, os.strerror(number), str(path / "file"))
    return str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_with_its_numbers(tmp_path: Path, number: int) -> None:
    message = refusal(tmp_path / "not" / "there", number, 12_000)
    assert "is full: " in message and "bytes are left, 12,000 are needed" in message
    assert "→ Free space there or choose another `output`." in message


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, number: int) -> None:
    message = refusal(tmp_path, number)
    assert f"{tmp_path} cannot be written: {os.strerror(number)} ({tmp_path / 'file'})." in message
    assert "→ Change its permissions or choose another `output`." in message


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), write_errors_are_the_users(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
