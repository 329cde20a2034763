"""Process groups under torchrun and alone, and the random states that belong to them."""

import pytest
import torch

from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig
from tests.parallel import cases
from tests.support.distributed import Failed, Workers


def test_tensor_parallel_ranks_are_neighbours(distributed: Workers) -> None:
    found = distributed(cases.ranks, 4, tp=2, pp=2)
    assert [(rank["tp"], rank["pp"]) for rank in found] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_data_parallel_is_what_is_left(distributed: Workers) -> None:
    found = distributed(cases.ranks, 4, tp=2, pp=1)
    assert [rank["dp"] for rank in found] == [0, 0, 1, 1]
    assert {rank["dp_size"] for rank in found} == {2}


def test_random_states_of_tensor_parallel_ranks(distributed: Workers) -> None:
    """Equal outside split layers (dropout on whole activations), different inside."""
    (*_, outside, inside), (*_, outside_too, inside_too) = distributed(cases.draws, 2, tp=2, pp=1, seed=5)
    assert outside == outside_too
    assert inside != inside_too


def test_random_states_of_stages_differ_and_repeat_with_the_seed(distributed: Workers) -> None:
    first, second = distributed(cases.draws, 2, tp=1, pp=2, seed=5)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert distributed(cases.draws, 2, tp=1, pp=2, seed=5) == [first, second]
    assert distributed(cases.draws, 2, tp=1, pp=2, seed=6)[0] != first


def test_worlds_of_all_sizes_follow_one_another(distributed: Workers) -> None:
    assert [distributed(cases.sum_of_ranks, size)[0] for size in (4, 1, 2)] == [6.0, 0.0, 1.0]


def test_a_process_alone_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        groups.initialize(ParallelConfig(), seed=1)
        assert torch.distributed.get_world_size() == 1
        groups.shutdown()
    groups.shutdown()


def test_a_failing_rank_is_reported_with_its_traceback(distributed: Workers) -> None:
    # Of the two that raise, either may be the first to say so.
    with pytest.raises(Failed, match=r"rank [01](.|\n)*Traceback(.|\n)*world_size \(2\) is not divisible by 4"):
        distributed(cases.ranks, 2, tp=4, pp=1)
