"""Ulysses: around attention each process swaps its tokens of all heads for all tokens of its heads.

DeepSpeed-Ulysses, arXiv:2309.14509: all-to-alls of queries, keys and values in front of attention and one of its output
behind it, each process sending (P - 1) / P of what it holds, so that communication does not grow with their number P.

Shapes: B batch, H heads, K heads of keys and values, L tokens of this process, S = P · L tokens, D head size.
"""

from collections.abc import Callable
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from swift_mega.base.errors import UserError


def ulysses(
    q_BHLD: Tensor, k_BKLD: Tensor, v_BKLD: Tensor, group: Any, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """[B, H, L, D]: attention of this process's tokens to the whole sequence.

    Heads of keys and values are repeated until the processes divide them; each gets those that its queries look at.

    Args:
        attend: q [B, H / P, S, D], k and v [B, heads, S, D] → [B, H / P, S, D].

    Raises:
        UserError: the processes do not divide the heads of the queries.
    """
    size = dist.get_world_size(group)
    check_heads(q_BHLD.shape[1], size)
    repeats = size // gcd(size, k_BKLD.shape[1])
    k, v = (x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k_BKLD, v_BKLD))
    out = attend(*(_to_heads(x, group, size) for x in (q_BHLD, k, v)))
    return _to_tokens(out, group, size)


def check_heads(heads: int, size: int) -> None:
    """Refuse heads that cannot be shared out evenly."""
    if heads % size:
        fitting = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
        raise UserError(
            f"ulysses shares heads among processes: {heads} attention heads on {size} leave {heads % size} over.",
            f"Take a `--sequence-parallel-size` of {fitting}, or `--sequence-parallel-mode ring`, which shares none.",
        )


def _to_heads(x_BHLD: Tensor, group: Any, size: int) -> Tensor:
    """[B, H, L, D] of this process's tokens → [B, H / P, S, D] of its heads."""
    batch, heads, length, dim = x_BHLD.shape
    parts_PBhLD = x_BHLD.reshape(batch, size, heads // size, length, dim).movedim(1, 0)
    return _swap(parts_PBhLD, group).movedim(0, 2).flatten(2, 3)


def _to_tokens(x_BhSD: Tensor, group: Any, size: int) -> Tensor:
    """The way back."""
    batch, heads, length, dim = x_BhSD.shape
    parts_PBhLD = x_BhSD.reshape(batch, heads, size, length // size, dim).movedim(2, 0)
    return _swap(parts_PBhLD, group).movedim(0, 1).flatten(1, 2)


def _swap(parts: Tensor, group: Any) -> Tensor:
    """Part n goes to process n, and what comes from process n is part n."""
    received: Tensor = _Swap.apply(parts, group)  # type: ignore[no-untyped-call]
    return received


class _Swap(torch.autograd.Function):
    """Its own transpose: the gradient of a part goes back the way that the part came."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _swap(gradients[0], ctx.group), None
