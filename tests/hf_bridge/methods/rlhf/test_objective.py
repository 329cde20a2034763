"""PPO's arithmetic, against loops over plain numbers."""

import math
import random

import pytest
import torch

from hf_bridge.methods.rlhf import objective

LENGTHS = (5, 2, 1)
C = 5
CLIP = 0.2


def numbers(seed: int) -> list[list[float]]:
    """[3, C], with something behind the answers that must not count."""
    generator = random.Random(seed)
    return [[generator.gauss(0, 1) for _ in range(C)] for _ in LENGTHS]


MASK = torch.tensor([[1.0] * length + [0.0] * (C - length) for length in LENGTHS])


@pytest.mark.parametrize(("discount", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (1.0, 0.0)])
def test_generalised_advantages(discount: float, lam: float) -> None:
    rewards, values = numbers(1), numbers(2)
    found, returns = objective.advantages(torch.tensor(rewards), torch.tensor(values), MASK, discount, lam)
    for row, length in enumerate(LENGTHS):
        for start in range(C):
            # The sum that the recursion stands for: Σ (γλ)ˡ δ.
            wanted = 0.0
            for step in range(start, length):
                ahead = values[row][step + 1] if step + 1 < length else 0.0
                delta = rewards[row][step] + discount * ahead - values[row][step]
                wanted += (discount * lam) ** (step - start) * delta
            assert float(found[row, start]) == pytest.approx(wanted, abs=1e-6)
            own = wanted + values[row][start] if start < length else 0.0
            assert float(returns[row, start]) == pytest.approx(own, abs=1e-6)


def test_returns_without_decay_are_what_is_still_to_come() -> None:
    rewards = torch.tensor(numbers(3))
    _, returns = objective.advantages(rewards, torch.tensor(numbers(4)), MASK, 1.0, 1.0)
    torch.testing.assert_close(returns[0], rewards[0].flip(0).cumsum(0).flip(0))


def each() -> list[tuple[int, int]]:
    return [(row, step) for row, length in enumerate(LENGTHS) for step in range(length)]


def test_policy_loss() -> None:
    new, old, gains = numbers(5), numbers(6), numbers(7)
    terms = []
    for row, step in each():
        ratio = math.exp(new[row][step] - old[row][step])
        clipped = min(max(ratio, 1 - CLIP), 1 + CLIP)
        terms.append(-min(ratio * gains[row][step], clipped * gains[row][step]))
    found = objective.policy_loss(torch.tensor(new), torch.tensor(old), torch.tensor(gains), MASK, CLIP)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-6, abs=1e-6)


def test_value_loss() -> None:
    new, old, returns = numbers(8), numbers(9), numbers(10)
    terms = []
    for row, step in each():
        value, before, wanted = new[row][step], old[row][step], returns[row][step]
        clipped = min(max(value, before - CLIP), before + CLIP)
        terms.append(0.5 * max((value - wanted) ** 2, (clipped - wanted) ** 2))
    found = objective.value_loss(torch.tensor(new), torch.tensor(old), torch.tensor(returns), MASK, CLIP)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-6, abs=1e-6)


def test_the_score_stands_at_the_last_token_and_the_divergence_at_all() -> None:
    apart = torch.tensor(numbers(11))
    found = objective.token_rewards(torch.tensor([1.0, 2.0, 3.0]), 0.1 * apart, MASK)
    for row, length in enumerate(LENGTHS):
        for step in range(C):
            wanted = -0.1 * float(apart[row, step]) if step < length else 0.0
            assert float(found[row, step]) == pytest.approx(wanted + (row + 1) * (step == length - 1), abs=1e-6)


def test_both_estimators_have_the_divergence_for_their_mean() -> None:
    policy, other = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    wanted = float((policy.exp() * (policy - other)).sum())
    for estimator in ("k1", "k3"):
        mean = (policy.exp() * objective.divergence(policy, other, estimator)).sum()
        assert float(mean) == pytest.approx(wanted, rel=1e-5)
    assert float(objective.divergence(policy, other, "k3").min()) >= 0
