"""What happens around the steps: stopping, looking for NaN, evaluating, saving, reporting.

`swift_mega.methods.run` lists them in the order in which they are called.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.distributed as dist

from swift_mega.base.console import counted, progress, say
from swift_mega.base.errors import UserError
from swift_mega.base.metrics import MetricsWriter, plot, status_line
from swift_mega.compat.device import peak_memory_bytes
from swift_mega.parallel.stopping import StopRequests
from swift_mega.train.checkpoint import Checkpointer
from swift_mega.train.export import Exporter
from swift_mega.train.loop import Callback, Trainer
from swift_mega.train.step import Batch, StepResult, mean_loss

WARMUP_STEPS = 2
"""Steps of a start left out of its average speed: they allocate, compile and open connections."""


class StopOnSignal(StopRequests, Callback):
    """Ends the loop after the current step on SIGTERM or SIGINT on any rank, so that the run is saved.

    Used as `with StopOnSignal() as stop:` from before the run leaves its first trace, so that whoever sees that it
    has begun may stop it.
    """

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        trainer.stop_reason = self.asked() or trainer.stop_reason

    def on_end(self, trainer: Trainer) -> None:
        self.finish()


class StopOnNonFinite(Callback):
    """Ends the run when the gradient norm is NaN or infinite, before the step can be saved.

    megatron-core has the norm on the host already, so that looking costs nothing.
    """

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if not math.isfinite(result.grad_norm):
            raise UserError(
                f"The gradient norm is {result.grad_norm} at step {trainer.progress.step}; "
                f"loss {mean_loss(result.loss_sum_and_tokens)}. Nothing was saved after it.",
                "Lower optimizer.lr, raise optimizer.lr_warmup_steps, or look at the data of this step, then "
                "start again: the newest checkpoint is from before it.",
            )


class Evaluate(Callback):
    """Loss on always the same batches of a held-out stream, every so many steps and at the end.

    Args:
        batches: makes a fresh iterator over the stream.
        count: global batches per evaluation.
        interval_steps: None: only before the first step and after the last.
    """

    def __init__(
        self,
        batches: Callable[[], Iterator[Batch]],
        count: int,
        metrics: MetricsWriter,
        *,
        interval_steps: int | None = None,
    ) -> None:
        self.batches = batches
        self.count = count
        self.metrics = metrics
        self.interval_steps = interval_steps
        self.evaluated_step = -1

    def on_start(self, trainer: Trainer) -> None:
        if trainer.progress.step == 0:
            self._evaluate(trainer)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if self.interval_steps and trainer.progress.step % self.interval_steps == 0:
            self._evaluate(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self.evaluated_step != trainer.progress.step:
            self._evaluate(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        loss = held_out_loss(trainer, self.batches(), self.count)
        self.evaluated_step = trainer.progress.step
        self.metrics.write(trainer.progress.step, {"eval/loss": loss})
        say(f"step {trainer.progress.step}: held-out loss {loss:.4f}")


class Test(Callback):
    """Loss on the test split, once: after the last step of the whole run."""

    def __init__(
        self, batches: Callable[[], Iterator[Batch]], count: int, metrics: MetricsWriter, last_step: int
    ) -> None:
        self.batches = batches
        self.count = count
        self.metrics = metrics
        self.last_step = last_step

    def on_end(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.last_step:
            loss = held_out_loss(trainer, self.batches(), self.count)
            self.metrics.write(trainer.progress.step, {"test/loss": loss})
            say(f"step {trainer.progress.step}: test loss {loss:.4f}")


def held_out_loss(trainer: Trainer, batches: Iterator[Batch], count: int) -> float:
    """The mean loss per token over `count` global batches, without dropout and without a trace in the model."""
    for chunk in trainer.chunks:
        chunk.eval()
    total = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
    with trainer.paused(), progress(count, "evaluate", "batch") as bar:
        for _ in range(count):
            total += trainer.stepper.evaluate(batches)
            bar.update(1)
    for chunk in trainer.chunks:
        chunk.train()
    return mean_loss(total)


class Save(Callback):
    """A checkpoint every so many steps and at the end, however the end came; with an exporter each in both formats."""

    def __init__(
        self, checkpointer: Checkpointer, interval_steps: int | None, exporter: Exporter | None = None
    ) -> None:
        self.checkpointer = checkpointer
        self.interval_steps = interval_steps
        self.exporter = exporter
        self.saved_step = -1

    def on_start(self, trainer: Trainer) -> None:
        self.saved_step = trainer.progress.step
        # A run that ended while it exported has the checkpoint, but not its export.
        if self.exporter and self.saved_step and not self.exporter.is_there(self.saved_step):
            with trainer.paused():
                self._export(self.exporter)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if self.interval_steps and trainer.progress.step % self.interval_steps == 0:
            self._save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self.saved_step != trainer.progress.step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        start = time.perf_counter()
        with trainer.paused():
            folder = self.checkpointer.save(trainer.progress)
            self.saved_step = trainer.progress.step
            say(f"step {trainer.progress.step}: saved {folder} in {time.perf_counter() - start:.1f} s")
            if self.exporter:
                self._export(self.exporter)

    def _export(self, exporter: Exporter) -> None:
        say(f"step {self.saved_step}: exported {exporter.save(self.saved_step)}")


class Report(Callback):
    """The progress bar, metrics.jsonl and loss.png.

    Args:
        tokens_per_step: tokens of one global batch.
        flops_per_step: of the whole model over one global batch, all ranks together.
        peak_flops: of one device, or None where it is not known; then there is no MFU.
        data_wait_s: seconds this rank has waited for data since its start.
    """

    def __init__(
        self,
        metrics: MetricsWriter,
        folder: Path,
        *,
        interval_steps: int,
        tokens_per_step: int,
        flops_per_step: float,
        peak_flops: float | None,
        data_wait_s: Callable[[], float],
    ) -> None:
        self.metrics = metrics
        self.folder = folder
        self.interval_steps = interval_steps
        self.tokens_per_step = tokens_per_step
        self.flops_per_step = flops_per_step
        self.peak_flops = peak_flops
        self.data_wait_s = data_wait_s

    def on_start(self, trainer: Trainer) -> None:
        self.first_step = trainer.progress.step
        self.open = ExitStack()
        self.bar = self.open.enter_context(progress(trainer.last_step, "train", "step", initial=trainer.progress.step))
        self.total = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
        self.steps = 0
        self.waited_s = self.data_wait_s()
        self.clock = self.warm_clock = trainer.training_clock()

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.total += result.loss_sum_and_tokens
        self.steps += 1
        if trainer.progress.step - self.first_step == WARMUP_STEPS:
            self.warm_clock = trainer.training_clock()
        if trainer.progress.step % self.interval_steps == 0 or trainer.finished:
            self._report(trainer, result)
        if trainer.finished:
            self.open.close()  # before the last evaluation draws a bar of its own

    def _report(self, trainer: Trainer, result: StepResult) -> None:
        loss = mean_loss(self.total)
        now = trainer.training_clock()
        step_s = (now - self.clock) / self.steps
        values = {
            "loss": loss,
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "tokens_per_s": self.tokens_per_step / step_s,
            "tflops_per_device": self.flops_per_step / step_s / dist.get_world_size() / 1e12,
            "data_wait_share": (self.data_wait_s() - self.waited_s) / (now - self.clock),
            "peak_memory_gb": peak_memory_bytes() / 1e9,
            "consumed_samples": trainer.progress.consumed_samples,
        }
        if self.peak_flops:
            values["mfu"] = values["tflops_per_device"] * 1e12 / self.peak_flops
        self.metrics.write(trainer.progress.step, values)
        self.bar.set_status(status_line(values))
        self.bar.update(self.steps)
        self.total.zero_()
        self.steps = 0
        self.waited_s = self.data_wait_s()
        self.clock = trainer.training_clock()

    def on_end(self, trainer: Trainer) -> None:
        self.open.close()
        plot(self.folder)
        warm = trainer.progress.step - self.first_step - WARMUP_STEPS
        if warm > 0:
            speed = warm * self.tokens_per_step / (self.clock - self.warm_clock)
            say(f"{speed:,.0f} tokens/s over {counted(warm, 'step')} (the first {WARMUP_STEPS} left out)")
        if trainer.stop_reason:
            say(f"Stopped at step {trainer.progress.step}: {trainer.stop_reason}. The same command continues.")
