"""SDPAAttention against attention written out."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from swift_mega.model.attention import SDPAAttention
from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig
from tests.model import cases
from tests.support.distributed import Workers

S, B, H, G, D = 12, 2, 4, 2, 8


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    groups.initialize(ParallelConfig(), seed=1)
    yield
    groups.shutdown()


def attention(
    layer_number: int = 1, softmax_scale: float | None = None, softcap: float | None = None, **config: Any
) -> SDPAAttention:
    return type("Attention", (SDPAAttention,), {"softcap": softcap})(
        config=TransformerConfig(
            num_layers=4,
            hidden_size=H * D,
            num_attention_heads=H,
            num_query_groups=G,
            cuda_graph_scope=[],
            **{"attention_dropout": 0.0, **config},
        ),
        layer_number=layer_number,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        softmax_scale=softmax_scale,
    )


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(S, B, heads, D, generator=generator) for heads in (H, G, G))
    return query, key, value


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    may_see: Tensor,
    scale: float = 1 / math.sqrt(D),
    softcap: float | None = None,
) -> Tensor:
    """[s, b, h·d] by the formula; `may_see` is [s, s] or [b, 1, s, s]."""
    key, value = (kv.repeat_interleave(H // G, dim=2) for kv in (key, value))
    scores = torch.einsum("sbhd,tbhd->bhst", query, key) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~may_see, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhst,tbhd->sbhd", weights, value).flatten(2)


CAUSAL = torch.ones(S, S, dtype=torch.bool).tril()


def test_causal_grouped_queries() -> None:
    torch.testing.assert_close(attention()(*inputs(), None), written_out(*inputs(), CAUSAL))


def test_scale() -> None:
    found = attention(softmax_scale=0.7)(*inputs(), None)
    torch.testing.assert_close(found, written_out(*inputs(), CAUSAL, scale=0.7))


@pytest.mark.parametrize("window", [None, (3, 0)])
def test_soft_cap(window: tuple[int, int] | None) -> None:
    found = attention(softmax_scale=0.7, softcap=1.5, window_size=window)(*inputs(), None)
    may_see = CAUSAL & torch.ones(S, S, dtype=torch.bool).triu(-3) if window else CAUSAL
    torch.testing.assert_close(found, written_out(*inputs(), may_see, scale=0.7, softcap=1.5))
    assert not torch.allclose(found, written_out(*inputs(), may_see, scale=0.7))


def test_sliding_window_sees_itself_and_those_before() -> None:
    window = CAUSAL & torch.ones(S, S, dtype=torch.bool).triu(-3)
    torch.testing.assert_close(attention(window_size=(3, 0))(*inputs(), None), written_out(*inputs(), window))


def test_layers_without_a_window() -> None:
    windowed: dict[str, Any] = {"window_size": (3, 0), "window_attn_skip_freq": [0, 1, 0, 1]}
    one, two = attention(1, **windowed), attention(2, **windowed)
    torch.testing.assert_close(one(*inputs(), None), written_out(*inputs(), CAUSAL))
    assert not torch.allclose(two(*inputs(), None), written_out(*inputs(), CAUSAL))


def test_a_given_mask_is_true_where_masked() -> None:
    mask = torch.zeros(B, 1, S, S, dtype=torch.bool)
    mask[1, :, :, S // 2 :] = True
    torch.testing.assert_close(attention()(*inputs(), mask), written_out(*inputs(), ~mask))


def test_no_mask() -> None:
    found = attention()(*inputs(), None, attn_mask_type=AttnMaskType.no_mask)
    torch.testing.assert_close(found, written_out(*inputs(), torch.ones(S, S, dtype=torch.bool)))


def test_dropout_only_while_training_and_repeatable() -> None:
    dropping = attention(attention_dropout=0.5)
    groups.seed_everything(3)
    first = dropping(*inputs(), None)
    groups.seed_everything(3)
    assert torch.equal(first, dropping(*inputs(), None))
    assert not torch.equal(first, dropping(*inputs(), None))
    torch.testing.assert_close(dropping.eval()(*inputs(), None), written_out(*inputs(), CAUSAL))


def test_dropout_differs_between_tensor_parallel_ranks(distributed: Workers) -> None:
    """Each rank has other heads; one mask for all of them would be correlated dropout."""
    one, two = distributed(cases.attention_dropout, 2)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("unsupported", [{"softmax_type": "off-by-one"}, {"apply_query_key_layer_scaling": True}])
def test_what_it_cannot_do_is_refused(unsupported: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SDPAAttention has no"):
        attention(**unsupported)
    with pytest.raises(ValueError, match="no packed sequences"):
        attention()(*inputs(), None, packed_seq_params=object())
