"""S², the shifted sparse attention of LongLoRA (arXiv:2309.12307, section 3.2), for [batch, heads, sequence, head]."""

import math

import torch
from torch.nn import functional


def shifted_sparse_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    group: int,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention within groups, which for the second half of the heads are shifted by half a group.

    Args:
        query: [B, H, S, D]; key and value have as many heads.
        mask: what full attention would be given: None (causal), or [B or 1, 1, S, S], True where seen, or added.
        group: tokens in a group; the last one may have fewer.

    Returns:
        [B, H, S, D].
    """
    tokens, half = query.shape[2], query.shape[1] // 2
    padded = math.ceil(tokens / group) * group
    positions = torch.arange(padded, device=query.device)
    parts = []
    for heads, shift in ((slice(0, half), 0), (slice(half, None), group // 2)):
        order = positions.roll(-shift)
        q, k, v = (_grouped(x[:, heads], order, group) for x in (query, key, value))
        seen = _visible(mask, order.view(-1, group), tokens, query)
        seen = seen.expand(query.shape[0], -1, -1, -1).flatten(0, 1)[:, None]
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling)
        out = out.view(query.shape[0], -1, *out.shape[1:]).transpose(1, 2).flatten(2, 3)
        parts.append(out.roll(shift, dims=2)[:, :, :tokens])
    return torch.cat(parts, dim=1)


def _grouped(x: torch.Tensor, order: torch.Tensor, group: int) -> torch.Tensor:
    """[B, H, S, D] → [B·groups, H, group, D], the tokens in `order`, with zeros for those that S lacks."""
    x = functional.pad(x, (0, 0, 0, len(order) - x.shape[2]))[:, :, order]
    return x.view(*x.shape[:2], -1, group, x.shape[-1]).transpose(1, 2).flatten(0, 1)


def _visible(mask: torch.Tensor | None, order: torch.Tensor, tokens: int, like: torch.Tensor) -> torch.Tensor:
    """The mask within every group, [B or 1, groups, group, group], for the positions in `order`.

    Every token sees itself, also one that is padding: a row of nothing has no softmax.
    """
    q, k = order[:, :, None], order[:, None, :]
    if mask is None:
        return ((k <= q) & (k < tokens) | (q == k))[None]
    missing = order.numel() - tokens
    if mask.dtype == torch.bool:
        return functional.pad(mask[:, 0], (0, missing, 0, missing), value=False)[:, q, k] | (q == k)
    least = torch.finfo(mask.dtype).min
    seen = functional.pad(mask[:, 0], (0, missing, 0, missing), value=least)[:, q, k]
    return torch.where((q == k) & (seen <= least / 2), 0.0, seen).to(like.dtype)
