"""The loop. It steps until the last step or until somebody asks it to stop; all else is a callback."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from swift_mega.train.checkpoint import Progress
from swift_mega.train.step import Batch, Stepper, StepResult


@dataclass
class Trainer:
    """A run between two steps: everything a callback may look at."""

    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    stepper: Stepper
    batches: Iterator[Batch]
    global_batch_size: int
    last_step: int
    """Step after which this start ends."""

    progress: Progress = field(default_factory=Progress)
    stop_reason: str = ""
    """Set by a callback to end the loop after this step."""

    paused_s: float = 0.0
    """Seconds of this start in which it did not train."""

    @property
    def finished(self) -> bool:
        return bool(self.stop_reason) or self.progress.step >= self.last_step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time that the body takes counts for no training speed: an evaluation, a save."""
        started = time.perf_counter()
        yield
        self.paused_s += time.perf_counter() - started

    def training_clock(self) -> float:
        """Seconds of training since some moment; differences count."""
        return time.perf_counter() - self.paused_s


class Callback:
    """Something periodic. Called in the order given; each method may be left out."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this start."""

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        """After every optimizer step."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step of this start, when nothing failed."""


def fit(trainer: Trainer, callbacks: Sequence[Callback]) -> None:
    """Train until `trainer.finished`."""
    for callback in callbacks:
        callback.on_start(trainer)
    while not trainer.finished:
        result = trainer.stepper.train(trainer.batches, trainer.optimizer, trainer.scheduler)
        trainer.progress.step += 1
        trainer.progress.consumed_samples += trainer.global_batch_size
        for callback in callbacks:
            callback.on_step(trainer, result)
    for callback in callbacks:
        callback.on_end(trainer)
