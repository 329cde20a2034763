"""The forecast of a dry run on disks of every fullness."""

import os
from pathlib import Path

import pytest

from converters import forecast


@pytest.mark.parametrize(("free", "most"), [(0, 0), (100 << 20, 10 << 20), (1 << 40, 64 << 20)])
def test_the_probe_takes_a_share_of_what_is_free(
    free: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def write(_: int, block: bytes) -> int:
        written.append(len(block))
        return len(block)

    monkeypatch.setattr(forecast, "free_bytes", lambda _: free)
    monkeypatch.setattr(forecast, "PROBE_S", 0.2)
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    speed = forecast.disk_speed(tmp_path)
    assert (speed is None) == (free == 0)
    assert bool(written) == (free > 0) and (free > 1 << 30 or sum(written) <= most)
