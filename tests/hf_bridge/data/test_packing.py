"""Packing against best fit done slowly, and a packed sequence against its rows one by one."""

import numpy as np
import pytest
import torch

from hf_bridge.data.packing import attention_mask, join, pack
from swift_mega.base.errors import UserError


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """What is left in each sequence, sorted."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in left if space >= length]
        if fitting:
            left.remove(min(fitting))
        left.append((min(fitting) if fitting else capacity) - length)
    return sorted(left)


@pytest.mark.parametrize("seed", range(20))
def test_best_fit(seed: int) -> None:
    generator = np.random.default_rng(seed)
    capacity = int(generator.integers(8, 60))
    lengths = generator.integers(1, capacity + 1, 200).tolist()
    packed = pack(lengths, capacity)
    sequences = [packed[number] for number in range(len(packed))]
    assert sorted(np.concatenate(sequences).tolist()) == list(range(200))
    used = [sum(lengths[row] for row in rows) for rows in sequences]
    assert sorted(capacity - tokens for tokens in used) == slow_best_fit(lengths, capacity)
    assert packed.fill == pytest.approx(sum(lengths) / (capacity * len(packed)))
    assert max(used) <= capacity


def test_short_rows_fill_nearly_everything() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1, 20_000), 4, 4096).astype(int)
    assert pack(lengths, 4096).fill > 0.999


def test_nothing_to_pack() -> None:
    assert len(pack([], 8)) == 0
    assert pack([], 8).fill == 1.0


@pytest.mark.parametrize(("lengths", "message"), [([3, 9], "row 1 has 9 tokens"), ([0, 3], "row 0 has 0 tokens")])
def test_rows_that_do_not_fit(lengths: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(lengths, 8)


def test_a_joined_sequence() -> None:
    joined = join([[5, 6, 7], [8, 9]], 7, pad=0)
    assert joined.tokens.tolist() == [5, 6, 7, 8, 9, 0, 0]
    assert joined.positions.tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert joined.segments.tolist() == [1, 1, 1, 2, 2, 0, 0]
    with pytest.raises(UserError, match="5 tokens do not go into a sequence of 4"):
        join([[5, 6, 7], [8, 9]], 4, pad=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_has_the_logits_it_has_alone(attention: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, attn_implementation=attention, **sizes)
    model = LlamaForCausalLM(config).eval()
    rows = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]
    joined = join(rows, 14, pad=0)
    mask = torch.from_numpy(attention_mask(joined.segments))
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        packed = model(
            torch.from_numpy(joined.tokens)[None],
            position_ids=torch.from_numpy(joined.positions)[None],
            attention_mask=bias,
        ).logits[0]
        alone = [model(torch.tensor([row])).logits[0] for row in rows]
    torch.testing.assert_close(packed[:12], torch.cat(alone), rtol=0, atol=1e-5)
    assert torch.isfinite(packed).all()
