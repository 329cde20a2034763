"""Attention in tiles: exact, without the matrix of all scores, over keys and values that may lie on several processes.

The forward pass keeps the output and the log of each query's sum of exponents (lse) and corrects both with every tile
that it meets (Milakov and Gimelshein, arXiv:1805.02867); the backward pass gets the probabilities back from scores and
lse (FlashAttention, arXiv:2205.14135, algorithm 4). With a group of several processes keys and values go round
(Ring Attention, arXiv:2310.01889): each hands its block to the next while it computes with it, and in the backward
pass the gradients of a block travel with it until they are home.

Shapes: B batch, H heads of queries, K heads of keys and values (H is a multiple), G = H / K, Q queries and T keys of
this process, D head size of queries and keys, V that of values; q_BKGQD is q by heads of keys.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TILE = 1024
"""Queries, and keys, of a tile. Its scores take B · H · TILE² · 4 bytes: 128 MiB with 32 heads."""

Visible = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' mask functions: batch, head, position of query and of key → whether the query sees the key."""


@dataclass(frozen=True)
class Tile:
    """Queries that meet keys.

    Attributes:
        seen: [B or 1, 1, 1, queries, keys], or None where all see all.
    """

    queries: slice
    keys: slice
    seen: Tensor | None


Plan = tuple[tuple[Tile, ...], ...]
"""Of each process whose keys come by, beginning with this one's: the tiles in which anything is seen."""


def plan(
    queries: Tensor,
    sources: Sequence[Tensor],
    segments: Tensor,
    visible: Visible,
    device: Any = "cpu",
    tile: int = TILE,
) -> Plan:
    """Which tiles have to be computed, and what is seen in them; made once for all layers that share a mask.

    Args:
        queries: [Q] positions in the whole sequence of this process's tokens.
        sources: the same of each process, in the order in which their keys come by.
        segments: [B, S] number of the row that each token of the whole sequence belongs to; 0 is padding, which sees
            itself only, as a query that sees nothing has no softmax.
        visible: the model's mask, without rows and padding.
        device: of the masks.
    """
    segments = segments.cpu()
    return tuple(
        tuple(
            Tile(rows, columns, None if seen.all() else seen.to(device))
            for rows in _ranges(queries, tile)
            for columns in _ranges(keys, tile)
            if (seen := _seen(queries[rows], keys[columns], segments, visible)).any()
        )
        for keys in sources
    )


def _ranges(positions: Tensor, tile: int) -> list[slice]:
    """Consecutive positions, at most `tile` of them each."""
    jumps = (positions.diff() != 1).nonzero().flatten() + 1
    edges = [0, *jumps.tolist(), len(positions)]
    return [slice(first, min(first + tile, end)) for start, end in pairwise(edges) for first in range(start, end, tile)]


def _seen(queries: Tensor, keys: Tensor, segments: Tensor, visible: Visible) -> Tensor:
    """[B or 1, 1, 1, Q, T]."""
    q, k = queries[:, None], keys[None, :]
    batch = torch.arange(len(segments))[:, None, None, None]
    of_q, of_k = segments[:, queries][:, None, :, None], segments[:, keys][:, None, None, :]
    seen = visible(batch, torch.zeros(1, 1, 1, 1, dtype=torch.long), q[None, None], k[None, None])
    return (seen & (of_q == of_k) & (of_q != 0) | (q == k))[:, :, None]


def attention(
    q_BHQD: Tensor,
    k_BKTD: Tensor,
    v_BKTV: Tensor,
    tiles: Plan,
    group: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """[B, H, Q, V]: softmax(softcap · tanh(q·k·scale / softcap)) · v, over the keys that a query sees.

    Args:
        tiles: of `plan`, with one entry for each process of `group`.
        group: the processes whose keys go round; None: only this one's.
        scale: None: 1/√D.
    """
    batch, heads, length, size = q_BHQD.shape
    of_keys = k_BKTD.shape[1]
    scores = _Scores(size**-0.5 if scale is None else scale, softcap)
    q_BKGQD = q_BHQD.reshape(batch, of_keys, heads // of_keys, length, size)
    out: Tensor = _Attention.apply(q_BKGQD, k_BKTD, v_BKTV, tiles, group, scores)  # type: ignore[no-untyped-call]
    return out.flatten(1, 2)


class _Attention(torch.autograd.Function):
    """In float32 or wider, whatever the inputs."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Plan, group: Any, scores: "_Scores") -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        out = q.new_zeros((*q.shape[:-1], v.shape[-1]), dtype=wide)
        lse = q.new_full(q.shape[:-1], -torch.inf, dtype=wide)
        for step, (keys, values) in _round(tiles, [k, v], group):
            for tile in step:
                _meet(q, keys, values, tile, scores, out, lse)
        ctx.save_for_backward(q, k, v, out.to(q.dtype), lse)
        ctx.tiles, ctx.group, ctx.scores = tiles, group, scores
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        d_out, wide = gradients[0], lse.dtype
        delta = (d_out.to(wide) * out.to(wide)).sum(-1, keepdim=True)
        d_q, d_k, d_v = (x.new_zeros(x.shape, dtype=wide) for x in (q, k, v))
        for step, (keys, values) in _round(ctx.tiles, [k, v], ctx.group):
            for tile in step:
                _meet_backward(q, keys, values, tile, ctx.scores, lse, d_out, delta, (d_q, d_k, d_v))
            if len(ctx.tiles) > 1:
                d_k, d_v = _hand_on([d_k, d_v], ctx.group)()
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), None, None, None


@dataclass(frozen=True)
class _Scores:
    """How queries and keys make scores."""

    scale: float
    softcap: float | None

    def __call__(self, q: Tensor, k: Tensor, tile: Tile, wide: torch.dtype) -> Tensor:
        """[B, K, G, queries, keys], before the mask."""
        rows = q[..., tile.queries, :]
        products = rows.flatten(2, 3) @ k[..., tile.keys, :].mT
        scores = products.reshape(*rows.shape[:-1], -1).to(wide) * self.scale
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def slope(self, scores: Tensor) -> Tensor | float:
        """Of scores by the product of query and key."""
        return self.scale if self.softcap is None else self.scale * (1 - (scores / self.softcap).square())


def _masked(scores: Tensor, tile: Tile) -> Tensor:
    return scores if tile.seen is None else scores.masked_fill(~tile.seen, -torch.inf)


def _meet(q: Tensor, k: Tensor, v: Tensor, tile: Tile, scores: _Scores, out: Tensor, lse: Tensor) -> None:
    """Correct `out` and `lse` by one tile."""
    s = _masked(scores(q, k, tile, lse.dtype), tile)
    before = lse[..., tile.queries]
    after = torch.logaddexp(before, s.logsumexp(-1))
    # A query that has seen nothing yet has -inf before and after, whose difference would be no number.
    base = after.clamp_min(torch.finfo(after.dtype).min)[..., None]
    added = (s - base).exp().flatten(2, 3).to(v.dtype) @ v[..., tile.keys, :]
    shrunk = out[..., tile.queries, :] * (before[..., None] - base).exp()
    out[..., tile.queries, :] = shrunk + added.reshape(shrunk.shape)
    lse[..., tile.queries] = after


def _meet_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tile: Tile,
    scores: _Scores,
    lse: Tensor,
    d_out: Tensor,
    delta: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Add one tile's share to the gradients of q, k and v: dS = P ∘ (dO·Vᵀ - delta) · slope."""
    d_q, d_k, d_v = gradients
    rows, columns = tile.queries, tile.keys
    s = scores(q, k, tile, lse.dtype)
    p = (_masked(s, tile) - lse[..., rows, None]).exp()
    d_o = d_out[..., rows, :].flatten(2, 3)
    d_p = (d_o @ v[..., columns, :].mT).reshape(p.shape).to(p.dtype)
    d_s = (p * (d_p - delta[..., rows, :]) * scores.slope(s)).flatten(2, 3).to(k.dtype)
    d_v[..., columns, :] += p.flatten(2, 3).to(d_o.dtype).mT @ d_o
    d_k[..., columns, :] += d_s.mT @ q[..., rows, :].flatten(2, 3)
    d_q[..., rows, :] += (d_s @ k[..., columns, :]).reshape(d_q[..., rows, :].shape)


def _round(tiles: Plan, block: list[Tensor], group: Any) -> Iterator[tuple[tuple[Tile, ...], list[Tensor]]]:
    """Every process's block with the tiles in it; the next one is on its way while one is computed with."""
    block = [tensor.contiguous() for tensor in block]
    for step in tiles[:-1]:
        arrived = _hand_on(block, group)
        yield step, block
        block = arrived()
    yield tiles[-1], block


def _hand_on(tensors: list[Tensor], group: Any) -> Callable[[], list[Tensor]]:
    """Begin to send these to the next process of the ring; what is called afterwards waits for the previous one's."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    following, previous = (dist.get_global_rank(group, (rank + way) % size) for way in (1, -1))
    received = [torch.empty_like(tensor) for tensor in tensors]
    pending = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, tensor, following, group) for tensor in tensors]
        + [dist.P2POp(dist.irecv, tensor, previous, group) for tensor in received]
    )

    def arrived() -> list[Tensor]:
        for work in pending:
            work.wait()
        return received

    return arrived
