"""Every tuner of ours against its paper's formula, computed here in a few lines."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hf_bridge.tuners.shifted_attention import shifted_sparse_attention
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners import own
from tests.support import tiny

TOKENS = tiny.tokens(101)


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Any:
    return own.load(tiny_model("llama"))


def bottleneck(params: dict[str, nn.Parameter], path: str, x: torch.Tensor) -> torch.Tensor:
    down = functional.gelu(x @ params[f"{path}.down.weight"].T + params[f"{path}.down.bias"])
    return down @ params[f"{path}.up.weight"].T + params[f"{path}.up.bias"]


def by_hand(model: Any, attention: Any, mlp: Any, layer_end: Any) -> torch.Tensor:
    """The logits of a Llama, layer by layer, with what a tuner does at the three places that it may act on."""
    inner = model.model
    hidden = inner.embed_tokens(TOKENS)
    rotary = inner.rotary_emb(hidden, position_ids=torch.arange(TOKENS.shape[1])[None])
    for number, layer in enumerate(inner.layers):
        start, path = hidden, f"model.layers.{number}"
        normed = layer.input_layernorm(hidden)
        out = layer.self_attn(normed, position_embeddings=rotary, attention_mask=None)[0]
        hidden = hidden + attention(f"{path}.self_attn", normed, out)
        normed = layer.post_attention_layernorm(hidden)
        hidden = hidden + mlp(f"{path}.mlp", normed, layer.mlp(normed))
        hidden = layer_end(path, start, hidden)
    return model.lm_head(inner.norm(hidden))


def untouched(path: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y


@pytest.mark.parametrize("name", ["adapter", "restuning", "scedit"])
def test_bottlenecks(model: Any, tiny_model: Callable[..., Path], name: str) -> None:
    attached = own.attach(model, name)
    own.disturb(attached)
    params = attached.parameters()
    added = {
        "adapter": lambda path, x, y: y + bottleneck(params, path, y),
        "restuning": lambda path, x, y: y + bottleneck(params, path, x),
        "scedit": lambda path, x, y: y + bottleneck(params, path, x),
    }[name]
    places = (untouched, untouched, added) if name == "scedit" else (added, added, untouched)
    with torch.no_grad():
        expected = by_hand(own.load(tiny_model("llama")), *places)
    torch.testing.assert_close(own.logits(model, TOKENS), expected, rtol=1e-5, atol=1e-5)


def states(model: Any) -> list[torch.Tensor]:
    """x_0 … x_N."""
    taps: list[torch.Tensor] = []
    with torch.no_grad():
        by_hand(model, untouched, untouched, lambda path, x, y: taps.append(x) or y)  # type: ignore[func-returns-value]
        inner = model.model
        rotary = inner.rotary_emb(taps[0], position_ids=torch.arange(TOKENS.shape[1])[None])
        return [*taps, inner.layers[-1](taps[-1], position_embeddings=rotary, attention_mask=None)]


def test_bypass(model: Any, tiny_model: Callable[..., Path]) -> None:
    attached, plain = own.attach(model, "restuning-bypass"), own.load(tiny_model("llama"))
    own.disturb(attached)
    params, x = attached.parameters(), states(plain)
    b = x[0]
    with torch.no_grad():
        for number in range(1, len(x)):
            path = f"model.layers.{number - 1}"
            share = torch.sigmoid(params[f"{path}.gate"])
            horizontal = x[number] + bottleneck(params, f"{path}.horizontal", x[number])
            b = share * horizontal + (1 - share) * (b + bottleneck(params, f"{path}.vertical", b))
        expected = plain.lm_head(plain.model.norm(b))
    torch.testing.assert_close(own.logits(model, TOKENS), expected, rtol=1e-5, atol=1e-5)


def test_bypass_lets_no_gradient_into_the_model(model: Any) -> None:
    own.attach(model, "restuning-bypass")
    model.requires_grad_(True)
    own.loss(model.train(), TOKENS).backward()
    assert all(param.grad is None for param in model.model.parameters() if param is not model.model.norm.weight)


def test_side(model: Any, tiny_model: Callable[..., Path]) -> None:
    attached, plain = own.attach(model, "side"), own.load(tiny_model("llama"))
    own.disturb(attached)
    params, x = attached.parameters(), states(plain)
    with torch.no_grad():
        share = torch.sigmoid(params["blend.alpha"])
        blended = share * x[-1] + (1 - share) * bottleneck(params, "blend.side", x[0])
        expected = plain.lm_head(plain.model.norm(blended))
    torch.testing.assert_close(own.logits(model, TOKENS), expected, rtol=1e-5, atol=1e-5)


def test_neftune(model: Any) -> None:
    """Noise within ±α/√(L·d), of that size, with each row's own L; none outside training."""
    own.attach(model, "neftune", alpha=7.0)
    embed, mask = model.get_input_embeddings(), torch.ones_like(TOKENS)
    mask[1, 10:] = 0
    plain, got = functional.embedding(TOKENS, embed.weight), []
    embed.register_forward_hook(lambda module, args, output: got.append(output))
    model.eval()(TOKENS, attention_mask=mask)
    assert torch.equal(got[-1], plain)
    model.train()(TOKENS, attention_mask=mask)
    noise = (got[-1] - plain).detach()
    for row, length in enumerate((16, 10)):
        bound = 7.0 / math.sqrt(length * plain.shape[-1])
        assert noise[row].abs().max() <= bound * 1.00001
        torch.testing.assert_close(noise[row].std().item(), bound / math.sqrt(3), rtol=0.1, atol=0)
    model(TOKENS)
    assert (got[-1] - plain)[1].abs().max() <= 7.0 / math.sqrt(16 * plain.shape[-1]) * 1.00001


@pytest.mark.parametrize("tokens", [16, 18, 21])
@pytest.mark.parametrize("masked", ["causal", "bool", "added"])
def test_shifted_sparse_attention(tokens: int, masked: str) -> None:
    """One softmax over the whole sequence, with what is not in a token's group masked away."""
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = torch.randn(3, 2, 5, tokens, 8, generator=generator)
    group = 6
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    seen = causal.expand(2, 1, -1, -1).clone()
    if masked != "causal":
        seen[1, :, :, :3] = False  # three tokens of padding on the left
    given = {"causal": None, "bool": seen, "added": torch.where(seen, 0.0, torch.finfo(torch.float32).min)}[masked]
    whole = math.ceil(tokens / group) * group
    scores = q @ k.mT / math.sqrt(8)
    for head in range(5):
        shift = 0 if head < 2 else group // 2
        number = torch.tensor([(i - shift) % whole // group for i in range(tokens)])
        allowed = seen[:, 0] & (number[:, None] == number[None, :]) | torch.eye(tokens, dtype=torch.bool)
        scores[:, head].masked_fill_(~allowed, -torch.inf)
    out = shifted_sparse_attention(q, k, v, given, group)
    torch.testing.assert_close(out, scores.softmax(-1) @ v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_longlora_attends_in_groups_in_training_only(tiny_model: Callable[..., Path], implementation: str) -> None:
    plain = own.load(tiny_model("llama"), attn_implementation=implementation)
    model = own.load(tiny_model("llama"), attn_implementation=implementation)
    attached = own.attach(model, "longlora")
    before = own.logits(plain, TOKENS)
    assert torch.equal(own.logits(model, TOKENS), before)
    in_groups = own.logits(model.train(), TOKENS)
    assert not torch.allclose(in_groups, before, atol=1e-2)
    calls = []

    def sparse(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **options: Any) -> Any:
        calls.append(q.shape)
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        out = shifted_sparse_attention(q, k, v, None, 4, options["scaling"])
        return out.transpose(1, 2), None

    import transformers

    transformers.AttentionInterface.register("sparse_for_test", sparse)
    plain.set_attn_implementation("sparse_for_test")
    torch.testing.assert_close(in_groups, own.logits(plain, TOKENS), rtol=1e-5, atol=1e-5)
    assert len(calls) == 4
    attached.detach()
    assert model.config._attn_implementation == implementation
    assert torch.equal(own.logits(model, TOKENS), before)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_longlora_hides_padding_and_the_future(tiny_model: Callable[..., Path], implementation: str) -> None:
    model = own.load(tiny_model("llama"), attn_implementation=implementation)
    own.attach(model, "longlora", lora_dropout=0.0)
    mask, other = torch.ones_like(TOKENS), TOKENS.clone()
    mask[:, 12:] = 0
    other[:, 12:] = 7
    before, after = (own.logits(model.train(), tokens, attention_mask=mask)[:, :12] for tokens in (TOKENS, other))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    changed = TOKENS.clone()
    changed[:, 9] = 3
    late = own.logits(model, changed) - own.logits(model, TOKENS)
    assert not late[:, :9].any() and late[:, 9:].any()


def test_longlora_trains_embeddings_and_norms(model: Any) -> None:
    attached = own.attach(model, "longlora")
    names = "\n".join(attached.parameters())
    assert all(part in names for part in ("embed_tokens", "input_layernorm", "post_attention_layernorm", "lora_A"))
    assert "lm_head" not in names


def test_longlora_refuses_attention_that_was_replaced_since(model: Any) -> None:
    (still_sparse,) = own.attach(model, "longlora").callbacks()
    still_sparse.on_train_begin()
    model.set_attn_implementation("eager")
    with pytest.raises(UserError, match="attention is `eager` now"):
        still_sparse.on_train_begin()


def test_longlora_refuses_other_attention(model: Any) -> None:
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"loaded with `flash_attention_2`.*\n.*attn_implementation=sdpa"):
        own.attach(model, "longlora")
