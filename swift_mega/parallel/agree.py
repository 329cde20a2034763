"""Work that one rank does for all, with its error told to all.

A mistake found on rank 0 alone would leave the others waiting in their next collective until a
timeout; told to everybody, every rank ends at once and rank 0 prints it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from swift_mega.base.errors import UserError

T = TypeVar("T")


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank; a UserError it raises is raised on every rank. Collective."""
    if not dist.is_initialized():
        return work()
    outcome: list[T | UserError | None] = [None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[0] = error
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]
