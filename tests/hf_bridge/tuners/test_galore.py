"""GaLore and Q-GaLore against the papers' update in a few lines, and their state on disk."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_bridge.tuners.galore import GaLoreAdamW
from hf_bridge.tuners.q_galore import QGaLoreAdamW, from_4_bits, to_4_bits
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners import own
from tests.support import tiny

LR, DECAY, RANK, EVERY, ALPHA = 0.01, 0.1, 3, 4, 0.5


def gradients(shape: tuple[int, ...], steps: int = 10) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def by_hand(weight: torch.Tensor, grads: list[torch.Tensor]) -> torch.Tensor:
    """Projected Adam as the paper writes it, for a matrix that is wider than tall, in fp64."""
    w, m, v = weight.double(), torch.zeros(()), torch.zeros(())
    for t, g in enumerate(g.double() for g in grads):
        if t % EVERY == 0:
            p = torch.linalg.svd(g)[0][:, :RANK]
        r = p.T @ g
        m, v = 0.9 * m + 0.1 * r, 0.999 * v + 0.001 * r * r
        n = (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        w = w - LR * (ALPHA * p @ n + DECAY * w)
    return w.float()


def group(params: list[torch.nn.Parameter], **options: Any) -> dict[str, Any]:
    return {
        "params": params,
        "weight_decay": DECAY,
        "rank": RANK,
        "update_interval": EVERY,
        "scale": ALPHA,
        "similarity": 0.4,
        **options,
    }


def run(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: range) -> None:
    series = [gradients(tuple(param.shape), 30) for param in params]
    for step in steps:
        for param, grads in zip(params, series, strict=True):
            param.grad = grads[step].to(param.dtype)
        optimizer.step()


@pytest.mark.parametrize("tall", [False, True])
def test_a_matrix_moves_as_the_paper_says(tall: bool) -> None:
    start, grads = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)), gradients((8, 12))
    param = torch.nn.Parameter((start.T if tall else start).clone())
    optimizer = GaLoreAdamW([group([param])], lr=LR)
    for grad in grads:
        param.grad = grad.T if tall else grad
        optimizer.step()
    moved = param.detach().T if tall else param.detach()
    torch.testing.assert_close(moved, by_hand(start, grads), rtol=1e-5, atol=1e-5)
    small = {key: list(value.shape) for key, value in optimizer.state[param].items() if torch.is_tensor(value)}
    assert small == {"basis": [8, RANK], "exp_avg": [RANK, 12], "exp_avg_sq": [RANK, 12]}


def test_experts_are_projected_one_by_one() -> None:
    both = torch.nn.Parameter(torch.zeros(2, 8, 12))
    single = torch.nn.Parameter(torch.zeros(8, 12))
    grads = gradients((2, 8, 12))
    stacked, alone = GaLoreAdamW([group([both])], lr=LR), GaLoreAdamW([group([single])], lr=LR)
    for grad in grads:
        both.grad, single.grad = grad, grad[1]
        stacked.step()
        alone.step()
    torch.testing.assert_close(both[1].detach(), single.detach(), rtol=1e-5, atol=1e-6)


def test_other_parameters_get_adamw() -> None:
    ours, theirs = (torch.nn.Parameter(torch.ones(7)) for _ in range(2))
    run(GaLoreAdamW([{"params": [ours], "weight_decay": DECAY}], lr=LR), [ours], range(5))
    run(torch.optim.AdamW([theirs], lr=LR, weight_decay=DECAY), [theirs], range(5))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [GaLoreAdamW, QGaLoreAdamW])
def test_its_state_is_resumed_to_the_last_bit(kind: type[GaLoreAdamW], dtype: torch.dtype, tmp_path: Path) -> None:
    def made() -> tuple[list[torch.nn.Parameter], GaLoreAdamW]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((8, 12), (7,), (40, 2000))  # the moments of the last are kept in 8 bits
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
        return params, kind([group([params[0], params[2]]), {"params": [params[1]]}], lr=LR)

    through, optimizer = made()
    run(optimizer, through, range(11))
    params, first = made()
    run(first, params, range(6))
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    _, second = made()
    second = kind([group([params[0], params[2]]), {"params": [params[1]]}], lr=LR)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    run(second, params, range(6, 11))
    assert all(torch.equal(a, b) for a, b in zip(through, params, strict=True))


def test_four_bits() -> None:
    values = torch.randn(37, 19, generator=torch.Generator().manual_seed(0))
    codes, scale, least = to_4_bits(values)
    assert codes.dtype == torch.uint8 and codes.numel() == 3 * 128  # 703 numbers in three groups of 256
    back = from_4_bits(codes, scale, least, [37, 19])
    flat, nearest = values.flatten(), back.flatten()
    for number in range(3):
        part = flat[number * 256 : (number + 1) * 256]
        levels = part.min() + torch.arange(16) * (part.max() - part.min()) / 15
        expected = levels[(part[:, None] - levels).abs().argmin(1)]
        torch.testing.assert_close(nearest[number * 256 : (number + 1) * 256], expected, rtol=0, atol=1e-5)


def test_eight_bit_moments_change_little() -> None:
    shape = (64, 512)
    exact, quantised = (torch.nn.Parameter(torch.zeros(shape)) for _ in range(2))
    options = {"rank": 16, "weight_decay": 0.0}
    run(GaLoreAdamW([group([exact], **options)], lr=LR), [exact], range(8))
    optimizer = QGaLoreAdamW([group([quantised], **options)], lr=LR)
    run(optimizer, [quantised], range(8))
    state = optimizer.state[quantised]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == state["codes"].dtype == torch.uint8
    stored = sum(value.nbytes for value in state.values() if torch.is_tensor(value))
    assert stored < 0.3 * 4 * (2 * 16 * 512 + 64 * 16)
    assert torch.cosine_similarity(exact.flatten(), quantised.flatten(), dim=0) > 0.97


def test_the_interval_doubles_where_the_subspace_stays() -> None:
    steady, restless = (torch.nn.Parameter(torch.zeros(8, 12)) for _ in range(2))
    optimizer = QGaLoreAdamW([group([steady, restless], update_interval=2, similarity=0.9)], lr=LR)
    always, series = gradients((8, 12))[0], gradients((8, 12), 40)
    intervals = []
    for step in range(30):
        steady.grad, restless.grad = always * (-1) ** step, series[step]
        optimizer.step()
        intervals.append(optimizer.state[steady]["interval"])
    # Projections at 0, 2, 4, 6, 8, 10: the fifth comparison is the one at 10; then at 14, and so on.
    assert intervals[:10] == [2] * 10 and intervals[10:14] == [4] * 4 and intervals[14:22] == [8] * 8
    assert optimizer.state[restless]["interval"] == 2


def arguments(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "learning_rate": LR,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "weight_decay": DECAY,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 0.0,
        "world_size": 1,
        "fp16": False,
        "deepspeed": None,
        "fsdp": [],
    }
    return SimpleNamespace(**{**given, **changes})


@pytest.mark.parametrize("name", ["galore", "q-galore"])
def test_steps_in_the_backward_pass_are_the_same_steps(tiny_model: Callable[..., Path], name: str) -> None:
    trained, kept = [], []
    for per_layer in (False, True):
        model, tokens = own.load(tiny_model("llama")), tiny.tokens(101)
        attached = own.attach(model, name, rank=4, update_interval=2, per_layer=per_layer)
        optimizer = attached.optimizer([{"params": list(attached.parameters().values())}], arguments())
        assert optimizer is not None
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        for _ in range(4):
            own.loss(model, tokens).backward()
            kept.append(sum(param.grad is not None for param in model.parameters()))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        trained.append(own.bits(model))
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])
    assert kept == [39] * 4 + [0] * 4
    assert not torch.equal(trained[0]["lm_head.weight"], own.load(tiny_model("llama")).lm_head.weight)


@pytest.mark.parametrize("name", ["galore", "q-galore"])
def test_a_resumed_trainer_goes_on_as_it_would_have(tiny_model: Callable[..., Path], name: str, tmp_path: Path) -> None:
    import transformers

    def trained(folder: Path, checkpoint: str | None = None, **options: Any) -> dict[str, torch.Tensor]:
        model = own.load(tiny_model("llama"))
        attached = own.attach(model, name, rank=4, update_interval=2, per_layer=True)
        given = transformers.TrainingArguments(
            str(folder),
            max_steps=5,
            per_device_train_batch_size=2,
            max_grad_norm=0.0,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        optimizer = attached.optimizer([{"params": list(attached.parameters().values())}], given)
        rows = [{"input_ids": row, "labels": row} for row in tiny.tokens(101, batch=8)]
        trainer = transformers.Trainer(model, given, train_dataset=rows, optimizers=(optimizer, None))
        trainer.train(resume_from_checkpoint=checkpoint)
        return own.bits(model)

    through = trained(tmp_path, save_steps=3)
    resumed = trained(tmp_path / "again", str(tmp_path / "checkpoint-3"), save_strategy="no")
    assert all(torch.equal(through[key], resumed[key]) for key in through)


def test_which_parameters_are_projected(tiny_model: Callable[..., Path]) -> None:
    model = own.load(tiny_model("llama"))
    attached = own.attach(model, "galore", rank=4)
    optimizer = attached.optimizer([{"params": list(attached.parameters().values())}], arguments())
    assert optimizer is not None
    projected, others = (len(group["params"]) for group in optimizer.param_groups)
    assert (projected, others) == (4 * 7, 4 * 2 + 3)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2"),
        ({"max_grad_norm": 1.0}, "max_grad_norm is 1.0"),
        ({"world_size": 2}, "there are 2 processes"),
        ({"fsdp": ["full_shard"]}, "whole gradients"),
    ],
)
def test_what_steps_in_the_backward_pass_rule_out(
    tiny_model: Callable[..., Path], changes: dict[str, Any], what: str
) -> None:
    attached = own.attach(own.load(tiny_model("llama")), "galore", per_layer=True)
    with pytest.raises(UserError, match=what):
        attached.optimizer([{"params": list(attached.parameters().values())}], arguments(**changes))


def test_detach_takes_the_hooks_away(tiny_model: Callable[..., Path]) -> None:
    model = own.load(tiny_model("llama"))
    attached = own.attach(model, "galore", per_layer=True, rank=4)
    attached.optimizer([{"params": list(attached.parameters().values())}], arguments())
    attached.detach()
    before = copy.deepcopy(own.bits(model))
    own.loss(model, tiny.tokens(101)).backward()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(param.grad is not None for param in model.parameters())
