"""Small file chores that every store has: JSON that may be broken, a disk that may be full."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swift_mega.base.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a missing or broken one is a UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.", "Is the folder complete?") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.", "Copy or download it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object.", "Copy or download it again.")
    return content


def write_json(path: Path, content: dict[str, Any], sort_keys: bool = True) -> None:
    """As transformers writes its JSON files."""
    path.write_text(json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def full_disk_is_the_users(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn "no space left" while writing under `path` (`needed_bytes`, if known) into a message with the numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        disk = os.statvfs(path if path.exists() else path.parent)
        needed = f", {needed_bytes:,} are needed" if needed_bytes else ""
        raise UserError(
            f"the disk that holds {path} is full: {disk.f_bavail * disk.f_frsize:,} bytes are left{needed}.",
            "Free space there or choose another target. Nothing finished was written.",
        ) from None
