"""Planted faults: each breaks one thing the product does, and a named test must notice.

Used as `with FAULTS[name]():` around a run, in every rank.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def sequence_parallel_norms_not_reduced() -> Iterator[None]:
    """Each TP rank keeps the norm gradients of its own part of the sequence."""
    from megatron.core.distributed import finalize_model_grads as module

    with patch.object(_module_of(module), "_allreduce_non_tensor_model_parallel_grads", lambda *_: None):
        yield


@contextmanager
def data_position_off_by_one() -> Iterator[None]:
    """A resumed run reads its last sample again."""
    from swift_mega.methods import run

    original = run._loader

    def shifted(config: Any, stream: Any, consumed_samples: int = 0) -> Any:
        return original(config, stream, max(0, consumed_samples - 1))

    with patch.object(run, "_loader", shifted):
        yield


@contextmanager
def rng_not_restored() -> Iterator[None]:
    """Dropout after a resume draws what it drew at the start."""
    from swift_mega.train import checkpoint

    with patch.object(checkpoint, "set_rng_state", lambda _: None):
        yield


@contextmanager
def scheduler_not_restored() -> Iterator[None]:
    """The learning rate starts over after a resume."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    with patch.object(OptimizerParamScheduler, "load_state_dict", lambda *_: None):
        yield


@contextmanager
def bucket_padding_not_counted() -> Iterator[None]:
    """megatron-core as it is: state behind a padded bucket is saved shifted."""
    from swift_mega.train import optimizer

    with patch.object(optimizer, "count_padding", lambda _: None):
        yield


def _module_of(function: Any) -> Any:
    import sys

    return sys.modules[function.__module__]


FAULTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    fault.__name__: fault
    for fault in (
        sequence_parallel_norms_not_reduced,
        data_position_off_by_one,
        rng_not_restored,
        scheduler_not_restored,
        bucket_padding_not_counted,
    )
}
