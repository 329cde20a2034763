"""Root reads and writes whatever it likes; tests of refusals give that up for a while."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VERSION_3 = 0x20080522
"""From `linux/capability.h`, as are the numbers below: two words each of effective, permitted and inheritable."""

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


@contextmanager
def permissions_count() -> Iterator[None]:
    """Inside, file permissions hold for this thread, and those it starts, also where it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    before, without = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if libc.capget(header, before) or libc.capget(header, without):
        pytest.skip("capabilities cannot be read here")
    without[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    if libc.capset(header, without):
        pytest.skip("capabilities cannot be given up here")
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
