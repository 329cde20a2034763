"""A full disk is recognised however megatron-core and torch have wrapped it; so is a rank that has gone."""

import errno
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from swift_mega.compat.peers import is_lost_peer
from swift_mega.compat.saving import is_disk_full, told_to_all


class FullDisk(io.RawIOBase):
    """A stream with room for `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.room -= len(memoryview(data))  # type: ignore[arg-type]
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(memoryview(data))  # type: ignore[arg-type]


def raised_by(work: Callable[[], object]) -> BaseException:
    """What `work` raises."""
    with pytest.raises(BaseException) as caught:
        work()
    return caught.value


@pytest.mark.parametrize("room", [0, 600, 5000])
def test_torch_save_on_a_full_disk(room: int) -> None:
    error = raised_by(lambda: torch.save(torch.zeros(4000), FullDisk(room)))  # type: ignore[arg-type]
    assert is_disk_full(error) and not told_to_all(error)


def test_a_writer_of_another_rank() -> None:
    def wrapped(error: Exception) -> CheckpointException:
        return CheckpointException("write", {3: _wrap_exception(error)})

    assert is_disk_full(wrapped(RuntimeError("Worker failure: [Errno 28] No space left on device")))
    assert is_disk_full(wrapped(OSError(errno.EDQUOT, "Disk quota exceeded")))
    assert told_to_all(wrapped(ValueError("x"))) and not is_disk_full(wrapped(ValueError("x")))
    assert not is_disk_full(CheckpointException("write", {}))


def test_a_file_that_is_not_there_is_no_full_disk() -> None:
    assert not is_disk_full(raised_by(lambda: Path("/nowhere/at/all").read_text()))


def test_a_rank_that_has_gone() -> None:
    assert is_lost_peer(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3"))
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
