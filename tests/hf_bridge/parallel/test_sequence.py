"""Ulysses and ring attention: losses and gradients of processes that share sequences are those of one process."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hf_bridge.parallel.layout import Layout
from hf_bridge.parallel.tiles import attention, plan
from hf_bridge.templates.encoding import IGNORED
from swift_mega.base.errors import UserError
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
    _compare([tiny_model(name) for name in names], mode, distributed, 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ulysses", "ring"])
def test_on_four_processes_and_two_groups_of_two(
    mode: str, tiny_model: Callable[..., Path], distributed: Workers
) -> None:
    _compare([tiny_model("llama"), tiny_model("olmo3")], mode, distributed, 4)
    folder, batch = tiny_model("llama"), cases.batch(*ROWS["packed"], vocabulary=99)
    outcomes = distributed(cases.shared, 4, [folder], mode, [batch], 2)
    loss, gradients = cases.whole(folder, batch)
    # Both groups have the same batch, so each sum is there twice, and so are the weights it is divided by.
    _same((loss, gradients), outcomes[0][0])


OTHERS = (
    *("gemma", "gemma3", "phi3-window", "ministral", "granite", "glm4", "olmo2", "olmo3", "exaone4", "nemotron"),
    *("ernie4_5", "qwen3-yarn", "ministral3", "mixtral", "qwen3-moe", "qwen2-moe", "deepseek-v2-lite", "deepseek-v3"),
    *("olmoe", "glm4-moe", "minimax-m2", "ernie4_5-moe"),
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ulysses", "ring"])
def test_families(mode: str, tiny_model: Callable[..., Path], distributed: Workers) -> None:
    # Sums in another order: gemma's scaled embedding leaves 1.5e-5 of its gradient to rounding.
    _compare([tiny_model(name) for name in OTHERS], mode, distributed, 2, most=3e-5)


def _compare(folders: list[Path], mode: str, distributed: Workers, size: int, most: float = 1e-5) -> None:
    pairs = [(folder, cases.batch(*rows, vocabulary=90)) for folder in folders for rows in ROWS.values()]
    many, batches = [folder for folder, _ in pairs], [batch for _, batch in pairs]
    outcomes = distributed(cases.shared, size, many, mode, batches, size, timeout_s=300)
    for (folder, batch), outcome in zip(pairs, outcomes[0], strict=True):
        _same(cases.whole(folder, batch), outcome, most)


def _same(
    expected: tuple[float, dict[str, Tensor]], outcome: tuple[float, dict[str, Tensor]], most: float = 1e-5
) -> None:
    """Losses to 1e-6, the whole gradient to `most` of its norm."""
    assert outcome[0] == pytest.approx(expected[0], rel=1e-6)
    assert outcome[1].keys() == expected[1].keys()
    gradient, found = (torch.cat([part.flatten() for _, part in sorted(one[1].items())]) for one in (expected, outcome))
    assert (found - gradient).norm() <= most * gradient.norm()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_tiles_are_attention(softcap: float | None) -> None:
    """Output and all gradients in float64, with heads that share keys, windows, packed rows, and tiles of all kinds."""
    torch.manual_seed(0)
    q, k = (torch.randn(2, heads, 37, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 2))
    v = torch.randn(2, 2, 37, 5, dtype=torch.float64, requires_grad=True)
    segments = torch.tensor([[1] * 11 + [2] * 20 + [0] * 6, [1] * 37])
    places = torch.arange(37)

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < 13)

    tiles = plan(places, [places], segments, near, tile=7)
    assert 0 < sum(len(step) for step in tiles) < 36, "tiles in which nothing is seen are left out"
    seen = near(places, places, places[:, None], places[None, :])
    seen = seen & (segments[:, :, None] == segments[:, None, :]) & (segments != 0)[:, :, None]
    seen |= torch.eye(37, dtype=torch.bool)
    scores = q @ k.repeat_interleave(3, 1).mT * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    expected = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1) @ v.repeat_interleave(3, 1)
    out = attention(q, k, v, tiles, scale=0.3, softcap=softcap)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), (q, k, v))
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weight).sum(), (q, k, v)))


def test_bfloat16_is_as_near_as_sdpa() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 16) for _ in range(3))
    exact = scaled_dot_product_attention(q, k, v, is_causal=True)
    low = [x.bfloat16() for x in (q, k, v)]
    places = torch.arange(64)
    tiles = plan(places, [places], torch.ones(1, 64), lambda b, h, query, key: key <= query, tile=16)
    ours = (attention(low[0], low[1], low[2], tiles) - exact).abs().max()
    torchs = scaled_dot_product_attention(low[0], low[1], low[2], is_causal=True)
    assert ours <= 1.5 * (torchs - exact).abs().max()


def test_a_split_batch_is_the_batch() -> None:
    data = cases.batch([[9, 4], [12]], 13, 90) | {"num_tokens": torch.tensor([13, 12])}
    modes: tuple[Literal["ulysses", "ring"], ...] = ("ulysses", "ring")
    for mode in modes:
        layouts = [Layout(mode, rank, 3) for rank in range(3)]
        parts = [layout.split(data) for layout in layouts]
        length = parts[0]["segments"].shape[1]
        order = torch.cat([layout.positions(length) for layout in layouts]).argsort()
        for name in ("input_ids", "shift_labels", "loss_weights", "position_ids"):
            whole = torch.cat([part[name] for part in parts], 1)[:, order]
            torch.testing.assert_close(whole[:, :13], data[name])
        assert torch.stack([part["num_tokens"] for part in parts]).sum(0).tolist() == [13, 12]
        for part in parts:
            assert (part["shift_labels"] != IGNORED).any(0).nonzero()[:, 0].tolist() == part["logits_to_keep"].tolist()
    with pytest.raises(UserError, match=r"cannot split `pixels` \[2, 3\]"):
        layouts[0].split({**data, "pixels": torch.ones(2, 3)})


@pytest.mark.slow
def test_groups_get_what_as_many_processes_would(distributed: Workers) -> None:
    """Five rows in batches of two: of one group the last is smaller, two groups have the first row twice."""
    assert distributed(cases.rows, 2, 2) == [[[0, 1], [2, 3], [4]]] * 2
    assert distributed(cases.rows, 4, 2) == [[[0, 1], [4, 0]]] * 2 + [[[2, 3], [1, 2]]] * 2


def test_what_cannot_be_shared_is_named(tiny_model: Callable[..., Path], distributed: Workers) -> None:
    refusals = {
        "phi3-longrope": "its rotary embedding depends on the longest position",
        "qwen3-next": "layers of type linear_attention, through which a state runs",
        "gpt-oss": "its attention is not exchangeable",
        "llama": "4 attention heads on 3 leave 1 over.*2, 4, or `--sequence-parallel-mode ring`",
    }
    messages = distributed(cases.refusals, 3, [tiny_model(name) for name in refusals])[0]
    for message, expected in zip(messages, refusals.values(), strict=True):
        assert re.search(expected, message, re.DOTALL), message
