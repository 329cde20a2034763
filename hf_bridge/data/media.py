"""Whether the images, videos and audios of a row are there. Torch-free.

A path is looked for in the working directory, and else beside the file that the row is in; URLs and `data:` URIs are
taken as they are. What was found is remembered with the rows, as files come and go without the data changing.
"""

import re
from pathlib import Path

import msgspec

from hf_bridge.data.row import Row

ELSEWHERE = re.compile(r"data:|[A-Za-z][A-Za-z0-9+.-]+://")
"""How what is no path on this machine begins."""

MEDIA = {"images": "an image", "videos": "a video", "audios": "an audio"}
SHOWN_CHARACTERS = 80
"""Of a path: what is no path may be a whole image in base64."""

Seen = dict[str, bool]
"""Paths, and whether a file was there."""


class Absent(Exception):
    """A medium that is not there: which kind, and its path."""

    def __init__(self, reason: str, path: str) -> None:
        super().__init__(reason)
        self.path = path if len(path) <= SHOWN_CHARACTERS else f"{path[:SHOWN_CHARACTERS]}…"


def with_media(row: Row, source: str, seen: Seen) -> Row:
    """The row with the paths at which its media are; `seen` gets all that were looked for.

    Args:
        source: file that the row is in, or name of a data set.

    Raises:
        Absent: one of them is not there.
    """
    changes = {}
    for column, name in MEDIA.items():
        given: tuple[str, ...] = getattr(row, column)
        if given:
            changes[column] = tuple(_found(path, name, source, seen) for path in given)
    return msgspec.structs.replace(row, **changes) if changes else row


def _found(location: str, name: str, source: str, seen: Seen) -> str:
    if ELSEWHERE.match(location):
        return location
    for path in (location, str(Path(source).parent / location)):
        if path not in seen:
            seen[path] = _is_file(path)
        if seen[path]:
            return path
    raise Absent(f"{name} that is not there", location)


def unchanged(seen: Seen) -> bool:
    """Whether all is as it was."""
    return all(_is_file(path) == there for path, there in seen.items())


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long for a name; a zero byte
        return False
