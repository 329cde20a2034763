"""SIGTERM and SIGINT as a wish that all ranks come to know of: the run ends after a step, and saves."""

import signal
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequests:
    """Listens from `__enter__` to `__exit__`. Collective: every rank enters, and asks equally often.

    The ranks have to agree, or one would save while another trains on. The vote of one step travels over gloo while the
    next computes, so that nobody waits for it. A process of its own needs no vote.
    """

    def __init__(self) -> None:
        self.received = 0
        self.vote: tuple[torch.Tensor, Any] | None = None
        self.group: Any = None

    def __enter__(self) -> Self:
        self.previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")  # waits for all ranks
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:  # asked twice: the person does not want to wait for the save
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number

    def asked(self) -> str:
        """Why to stop, as a sentence, once a rank was asked to at the latest by the call before; else empty."""
        number = self.received
        if self.group is not None:
            number = self._result()
            ballot = torch.tensor(self.received)
            self.vote = (ballot, dist.all_reduce(ballot, dist.ReduceOp.MAX, group=self.group, async_op=True))
        return f"received {signal.Signals(number).name}" if number else ""

    def _result(self) -> int:
        if self.vote is None:
            return 0
        ballot, work = self.vote
        work.wait()
        return int(ballot.item())

    def finish(self) -> None:
        """Wait for a vote that is on its way, before the groups go."""
        self._result()
