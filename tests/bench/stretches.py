"""Our training run, handing over to another process after every stretch of steps."""

import time
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from swift_mega.data.loader import loader
from swift_mega.methods.config import PretrainConfig
from swift_mega.train.loop import Callback, Trainer
from swift_mega.train.step import StepResult, mean_loss
from tests.bench.inputs import STRETCH_STEPS

LOSS, GRAD_NORM = 1e-4, 1e-3
"""Largest relative differences between the two sides."""


class Stretches(Callback):
    """After each stretch of the run, the same stretch on the other side; last among the callbacks.

    Args:
        other: the other side; see `hf_side.serve` for what is said.
        samples: file that the samples are left in for it.
    """

    def __init__(self, other: Connection, samples: Path, config: PretrainConfig) -> None:
        self.other = other
        self.samples = samples
        self.count = config.train.steps * config.train.global_batch_size
        self.seconds_per_step: list[tuple[float, float]] = []
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_start(self, trainer: Trainer) -> None:
        stream = trainer.batches.stream  # type: ignore[attr-defined]
        one_by_one = loader(stream, consumed_samples=0, micro_batch_size=1, dp_rank=0, dp_size=1, num_workers=0)
        torch.save(list(islice(one_by_one, self.count)), self.samples)
        self.other.send("samples are there")
        groups = trainer.optimizer.param_groups
        decayed = sum(param.numel() for group in groups if group["weight_decay"] for param in group["params"])
        check_equal("number of decayed weights", decayed, self.other.recv(), 0.0)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.losses.append(mean_loss(result.loss_sum_and_tokens))
        self.norms.append(result.grad_norm)
        self.ends.append(time.perf_counter())
        if len(self.ends) == STRETCH_STEPS:
            self.other.send("go")
            self._compare(*self.other.recv())
            self.ends, self.losses, self.norms = [], [], []

    def _compare(self, ends: list[float], losses: list[float], norms: list[float]) -> None:
        for ours, theirs in zip(self.losses, losses, strict=True):
            check_equal("loss", ours, theirs, LOSS)
        for ours, theirs in zip(self.norms, norms, strict=True):
            check_equal("gradient norm", ours, theirs, GRAD_NORM)
        self.seconds_per_step.append((seconds_per_step(self.ends), seconds_per_step(ends)))


def seconds_per_step(ends: list[float]) -> float:
    """From the ends of a stretch's steps; the first step, in which caches are still the other side's, is left out."""
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def check_equal(what: str, ours: float, theirs: float, relative: float) -> None:
    """A ratio of times means nothing unless both sides did the same."""
    if abs(ours - theirs) > relative * abs(ours):
        raise SystemExit(f"the two sides differ in the {what}: {ours} and {theirs}")
