"""Which rank reads which sample, and that a resumed run reads on exactly where the first one stopped."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from swift_mega.base.errors import UserError
from swift_mega.data import loader as loader_module
from swift_mega.data.config import DataConfig
from swift_mega.data.loader import Loader, loader
from swift_mega.data.stream import Stream, build_streams

GLOBAL_BATCH = 8


@pytest.fixture
def train(counting: Callable[..., str], tmp_path: Path) -> Stream:
    """100 samples: two epochs of 49 and two of the third."""
    config = DataConfig(train=[counting("a", 400)], sequence_length=8)
    cache = tmp_path / "cache"
    return build_streams(
        config, seed=5, total_train_samples=100, eval_samples=0, vocab_size=60000, eod=None, cache_dir=cache
    ).train


def start(stream: Stream, consumed: int = 0, micro: int = 2, rank: int = 0, size: int = 1, workers: int = 0) -> Loader:
    return loader(
        stream, consumed_samples=consumed, micro_batch_size=micro, dp_rank=rank, dp_size=size, num_workers=workers
    )


def names(batches: Loader, stop: int | None = None) -> list[int]:
    """The first token of each sample, which names it."""
    return [int(token) for batch in islice(batches, stop) for token in batch["tokens"][:, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_streams_samples(train: Stream, workers: int) -> None:
    batches = list(start(train, micro=4, workers=workers))
    assert len(batches) == 25
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batches[0].items()} == {
        "tokens": (torch.int64, (4, 8)),
        "labels": (torch.int64, (4, 8)),
        "loss_mask": (torch.float32, (4, 8)),
        "position_ids": (torch.int64, (4, 8)),
    }
    for number in range(100):
        for name, value in train[number].items():
            assert torch.equal(batches[number // 4][name][number % 4], value)


@pytest.mark.parametrize("sources", [1, 2])
def test_a_cache_that_this_node_does_not_see(sources: int, counting: Callable[..., str], tmp_path: Path) -> None:
    config = DataConfig(train=[counting(name, 400) for name in "ab"[:sources]], sequence_length=8)
    streams = build_streams(
        config, seed=5, total_train_samples=100, eval_samples=0, vocab_size=60000, eod=None, cache_dir=tmp_path / "c"
    )
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(UserError, match=rf"^{tmp_path}/c\S* is not there.\n.*must be a folder that all nodes see"):
        next(start(streams.train, workers=1))


@pytest.mark.parametrize(("micro", "size"), [(1, 1), (2, 1), (8, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4), (1, 8)])
def test_a_global_batch_is_the_same_for_every_layout(train: Stream, micro: int, size: int) -> None:
    per_rank = [names(start(train, micro=micro, rank=rank, size=size)) for rank in range(size)]
    share = GLOBAL_BATCH // size
    for step in range(100 // GLOBAL_BATCH):
        together = [name for mine in per_rank for name in mine[step * share : (step + 1) * share]]
        expected = [int(train[number]["tokens"][0]) for number in range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)]
        assert sorted(together) == sorted(expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [2, 40, 48, 50, 98])
def test_resume_reads_on_where_the_run_stopped(train: Stream, consumed: int, workers: int) -> None:
    """48 and 50 lie on either side of the first epoch's end. An off-by-one in the data position fails here."""
    whole = names(start(train))
    stopped = start(train, workers=workers)
    before = names(stopped, consumed // 2)
    assert before + names(start(train, consumed, workers=workers)) == whole


def test_a_data_position_off_by_one_is_noticed(train: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: shift the position by one and its comparison does not hold."""
    whole = names(start(train))
    rows = loader_module.Batches.__iter__

    def shifted(self: loader_module.Batches) -> Any:
        self.consumed_samples += 1
        return rows(self)

    monkeypatch.setattr(loader_module.Batches, "__iter__", shifted)
    assert whole[:40] + names(start(train, 40)) != whole


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_random_state_alone(train: Stream, workers: int) -> None:
    """A start that draws a random number would shift dropout in a resumed run."""
    before = torch.random.get_rng_state()
    names(start(train, workers=workers), 10)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_left_over_is_not_read(train: Stream) -> None:
    assert len(list(start(train, micro=3, size=2))) == 16
    assert list(start(train, consumed=100)) == []


def test_wait_is_measured(train: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("swift_mega.data.loader.time.perf_counter", lambda: float(next(clock)))
    batches = start(train)
    next(batches), next(batches)
    assert batches.wait_s == 2.0


ORPHAN = """
import multiprocessing, os, signal, time
from swift_mega.data import loader
told, tell = os.pipe()
def reader():
    os.read(told, 1)
    loader._start_reader(0)
    time.sleep(60)
if (rank := os.fork()) == 0:
    multiprocessing.get_context("fork").Process(target=reader).start()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(rank, 0)
os.write(tell, b"x")
"""


def test_a_reader_whose_rank_was_killed_before_it_could_look_ends() -> None:
    """Its output is ours, so that this returns when it has gone."""
    start = "from swift_mega import compat; compat.install()" + ORPHAN
    subprocess.run([sys.executable, "-c", start], capture_output=True, timeout=50, check=True)
