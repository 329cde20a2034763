"""The norms against their formulas; on several ranks they are proven by the families that have them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from swift_mega.model.norm import NORMS, LayerNorm, RMSNorm, RMSNormOfHeads
from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig

H, EPS = 12, 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    groups.initialize(ParallelConfig(), seed=1)
    yield
    groups.shutdown()


def config(**own: Any) -> TransformerConfig:
    return TransformerConfig(
        num_layers=1, hidden_size=H, num_attention_heads=3, cuda_graph_scope=[], **{"normalization": "RMSNorm", **own}
    )


def filled(norm: RMSNorm) -> RMSNorm:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return norm


@pytest.mark.parametrize("normalization", NORMS)
@pytest.mark.parametrize("zero_centered", [False, True])
def test_formula(normalization: str, zero_centered: bool) -> None:
    norm = NORMS[normalization](
        config(normalization=normalization, layernorm_zero_centered_gamma=zero_centered), H, EPS
    )
    x = torch.randn(5, 2, H) * 3 + 1
    centered = x if normalization == "RMSNorm" else x - x.mean(-1, keepdim=True)
    plain = centered / (centered.square().mean(-1, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(norm(x), plain)  # a fresh norm only normalises
    filled(norm)
    bias = norm.bias if isinstance(norm, LayerNorm) else 0.0
    torch.testing.assert_close(norm(x), plain * (norm.weight + zero_centered) + bias)


def test_small_weights_are_not_lost_beside_the_one() -> None:
    """In bf16 1 + 0.001 is 1: a weight that is stored minus one counts in fp32."""
    norm = RMSNorm(config(layernorm_zero_centered_gamma=True, params_dtype=torch.bfloat16), H, EPS)
    with torch.no_grad():
        norm.weight.fill_(0.001)
    x = torch.full((1, 1, H), 200.0, dtype=torch.bfloat16)
    assert norm.scale().dtype == torch.float32 and (norm.scale() > 1.0009).all()
    assert norm(x).dtype == torch.bfloat16


def test_all_heads_together() -> None:
    norm = filled(type("OfThree", (RMSNormOfHeads,), {"heads": 3})(config(), 4, EPS))
    x = torch.randn(5, 2, 3, 4)
    flat = x.flatten(2)
    expected = flat / (flat.square().mean(-1, keepdim=True) + EPS).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected.view_as(x))


def test_another_norm_than_the_models_is_our_fault() -> None:
    with pytest.raises(ValueError, match="RMSNorm is a RMSNorm, not LayerNorm"):
        RMSNorm(config(normalization="LayerNorm"), H)
