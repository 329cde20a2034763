"""Which tuners of a model are at work: for everybody, or for the thread that asks.

Tuners look here in every forward pass, so that two threads can use one model with a tuner each.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Activation:
    """The names of a model's tuners that are at work; `name in activation` is what a tuner asks.

    Attributes:
        everywhere: those at work where nothing else was chosen.
    """

    def __init__(self, everywhere: Iterable[str] = ()) -> None:
        self.everywhere = frozenset(everywhere)
        # A thread starts with a context of its own, in which nothing is chosen.
        self._here: ContextVar[frozenset[str] | None] = ContextVar("active tuners", default=None)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __deepcopy__(self, memo: dict[int, Any]) -> "Activation":
        return self  # copies of a part of the model are parts of it

    @property
    def names(self) -> frozenset[str]:
        """Those at work for the thread that asks."""
        chosen = self._here.get()
        return self.everywhere if chosen is None else chosen

    @contextmanager
    def only(self, names: Iterable[str]) -> Iterator[None]:
        """Inside, and in this thread alone, these are at work and no others.

        What runs in a thread of autograd, as gradient checkpointing does on a GPU, does not see it: this is for
        inference.
        """
        before = self._here.set(frozenset(names))
        try:
            yield
        finally:
            self._here.reset(before)
