"""Small file chores that every store has: JSON that may be broken, and what has to be on the disk."""

import json
import os
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
    path.write_bytes(json_bytes(content, sort_keys))


def json_bytes(content: dict[str, Any], sort_keys: bool = True) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=False) + "\n").encode()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
