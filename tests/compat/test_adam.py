"""Our Adam computes what torch's does and keeps its step where megatron looks for it."""

from typing import Any

import pytest
import torch

from swift_mega.compat.adam import Adam


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (13,), (1,))]


def set_gradients(params: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


@pytest.mark.parametrize(("adam_w_mode", "reference"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_equals_torch(adam_w_mode: bool, reference: type[torch.optim.Optimizer]) -> None:
    ours, theirs = parameters(), parameters()
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    one = Adam(ours, adam_w_mode=adam_w_mode, **options)
    other = reference(theirs, **options)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        one.step()
        other.step()
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-7)


def test_step_is_an_int_of_the_group_and_counts_in_empty_groups_too() -> None:
    params = parameters()
    optimizer = Adam([{"params": params}, {"params": []}], lr=0.1)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [2, 2]
    assert set(optimizer.state[params[0]]) == {"exp_avg", "exp_avg_sq"}


def test_continues_bitwise_from_its_state() -> None:
    straight, resumed = parameters(), parameters()
    one, other = Adam(straight, lr=0.01), Adam(resumed, lr=0.01)
    for step in range(4):
        set_gradients(straight, step)
        one.step()
        set_gradients(resumed, step)
        other.step()
        if step == 1:
            state = other.state_dict()
            other = Adam(resumed, lr=0.01)
            other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_parameters_without_gradient_stay() -> None:
    params = parameters()
    before = [param.detach().clone() for param in params]
    Adam(params, lr=0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
