"""Ulysses and ring attention: losses and gradients of processes that share sequences are those of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hf_bridge.parallel import cases
from tests.support.distributed import Workers

ROWS = {
    "uneven": ([[23], [17]], 23),
    "packed": ([[9, 4, 10], [16, 7]], 23),
    "packed and padded": ([[3, 8], [1, 20, 1]], 24),
}


@pytest.mark.parametrize("mode", ["ulysses", "ring"])
def test_losses_and_gradients_are_those_of_one_process(
    mode: str, tiny_model: Callable[..., Path], distributed: Workers
) -> None:
    """With heads of keys and values for two processes and for one, with sliding windows and softcaps."""
    names = ["llama", "qwen3-bias", "mistral-window", "gemma2"]
    folders = [tiny_model(name) for name in names for _ in ROWS]
    batches = [cases.batch(*rows, vocabulary=99) for _ in names for rows in ROWS.values()]
    outcomes = distributed(cases.shared, 2, folders, mode, batches, 2)
    for folder, batch, outcome in zip(folders, batches, outcomes[0], strict=True):
        _same(cases.whole(folder, batch), outcome)


def _same(expected: tuple[float, dict[str, Any]], outcome: tuple[float, dict[str, Any]]) -> None:
    assert outcome[0] == pytest.approx(expected[0], rel=1e-6)
    assert outcome[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (outcome[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
