"""Pickles put together by hand, so that they can name classes of torch without importing it.

Each function returns the bytes that push one value on the unpickler's stack (protocol 2).
"""

import pickle
import struct
from collections.abc import Iterable


def whole(value: bytes) -> bytes:
    """The finished pickle of one value."""
    return b"\x80\x02" + value + b"."


def plain(value: object) -> bytes:
    """Any value that pickle itself can write."""
    return pickle.dumps(value, protocol=2)[2:-1]


def text(value: str) -> bytes:
    """A string."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """Of any size."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    """A class or function by its name."""
    return f"c{module}\n{attribute}\n".encode()


def sequence(values: Iterable[bytes]) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def integers(values: Iterable[int]) -> bytes:
    """A tuple of integers."""
    return sequence(map(integer, values))


def items(values: Iterable[bytes]) -> bytes:
    """A list."""
    return b"](" + b"".join(values) + b"e"


def mapping(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A dict."""
    return b"}(" + b"".join(key + value for key, value in entries) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    """What a function returns."""
    return function + sequence(arguments) + b"R"


def instance(cls: bytes, state: bytes) -> bytes:
    """An object made without its constructor, with this state."""
    return cls + b")\x81" + state + b"b"


NONE, FALSE = b"N", b"\x89"
SET_ITEM, STOP = b"s", b"."


class Pickle:
    """Values that come again are written once, ahead of everything, and fetched from the memo."""

    def __init__(self) -> None:
        self._memo: dict[bytes, int] = {}

    def again(self, value: bytes) -> bytes:
        """`value`, an immutable one, from the memo."""
        return b"j" + struct.pack("<I", self._memo.setdefault(value, len(self._memo)))

    def whole(self, value: bytes) -> bytes:
        """The finished pickle of one value that was put together with `again`."""
        ahead = b"".join(known + b"r" + struct.pack("<I", at) + b"0" for known, at in self._memo.items())
        return whole(ahead + value)
