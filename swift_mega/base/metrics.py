"""The numbers of a run: `metrics.jsonl` always, TensorBoard and Weights & Biases when asked, `loss.png` from the first.

A line of `metrics.jsonl` is `{"step": 12, "time": 1735689600.0, "loss": 2.31, …}`. Each start of the
run adds one with `"start"`, the name of its parallel layout. A line that was written after the
checkpoint a start resumes from describes steps that will be done again, and is dropped.
"""

import importlib.util
import json
import math
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from swift_mega.base.console import is_main
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users

FILE = "metrics.jsonl"

STATUS = {
    "loss": "loss {:.4f}",
    "lr": "lr {:.2e}",
    "grad_norm": "|g| {:.2f}",
    "tokens_per_s": "{:,.0f} tok/s",
    "tflops_per_device": "{:.3g} TFLOP/s/dev",
    "data_wait_share": "data {:.0%}",
    "peak_memory_gb": "{:.1f} GB",
    "mfu": "MFU {:.1%}",
}
"""Numbers that are shown with the progress bar, in this order."""


class Sink(Protocol):
    """Somewhere else that the numbers also go."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Writes the numbers of one run from rank 0; on other ranks it does nothing.

    Args:
        folder: the run's output folder.
        resumed_step: the step this start continues from, 0 for a new run.
        layout: name of the parallel layout, e.g. `TP2×PP2`, for the plot.
        tensorboard: write `tensorboard/` too, where the package is installed.
        wandb_project: also report to this Weights & Biases project.

    Raises:
        UserError: W&B is asked for and not installed, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resumed_step: int = 0,
        layout: str = "",
        tensorboard: bool = False,
        wandb_project: str | None = None,
    ) -> None:
        self.folder = folder
        self.sinks: list[Sink] = []
        if not is_main():
            return
        with write_errors_are_the_users(folder, option="`output`"):
            folder.mkdir(parents=True, exist_ok=True)
            _drop_after(folder / FILE, resumed_step)
            self.sinks.append(_Lines(folder / FILE, resumed_step, layout))
            if tensorboard and _installed("tensorboard"):
                self.sinks.append(_TensorBoard(folder / "tensorboard", resumed_step))
        if wandb_project:
            self.sinks.append(_WeightsAndBiases(folder, wandb_project))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record `values` of `step`; they are on disk when this returns.

        Raises:
            UserError: the disk is full.
        """
        with write_errors_are_the_users(self.folder, option="`output`"):
            for sink in self.sinks:
                sink.write(step, values)

    def close(self) -> None:
        """End the run in every place it was reported to."""
        for sink in self.sinks:
            sink.close()


def status_line(values: dict[str, float]) -> str:
    """The numbers with the progress bar."""
    return ", ".join(form.format(values[name]) for name, form in STATUS.items() if name in values)


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run in `folder`, oldest first; a last line cut short by a crash is left out."""
    file = folder / FILE
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def plot(folder: Path) -> None:
    """Draw the run in `folder` as `loss.png`, and as `rewards.png` where it has any, from rank 0."""
    if is_main():
        from swift_mega.base.plot import draw, draw_rewards  # matplotlib takes a second to import

        lines, title = read(folder), folder.resolve().name
        with write_errors_are_the_users(folder, option="`output`"):
            draw(lines, folder / "loss.png", title)
            draw_rewards(lines, folder / "rewards.png", title)


def _drop_after(file: Path, step: int) -> None:
    """Rewrite `file` without the lines of later steps, so that it is complete at every moment."""
    kept = [line for line in read(file.parent) if 0 < step >= line["step"]]  # step 0: nothing was saved
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(file)


class _Lines:
    """`metrics.jsonl`: one line a write, each in one system call, so that a kill cuts none in two."""

    def __init__(self, file: Path, resumed_step: int, layout: str) -> None:
        self.stream = file.open("a", encoding="utf-8", buffering=1)
        self._line(resumed_step, {"start": layout})

    def write(self, step: int, values: dict[str, float]) -> None:
        self._line(step, values)

    def _line(self, step: int, values: dict[str, Any]) -> None:
        # JSON has no NaN and no infinity: they are written as null.
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        self.stream.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")

    def close(self) -> None:
        self.stream.close()


class _TensorBoard:
    """TensorBoard's own event writer; torch's wrapper would import torch."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.writer = EventFileWriter(str(folder))
        # A START event makes TensorBoard forget what an earlier start wrote from this step on.
        start = SessionLog(status=SessionLog.SessionStatus.START)
        self.writer.add_event(Event(wall_time=time.time(), step=resumed_step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    """One W&B run for all starts of a run: its id is kept in the output folder."""

    def __init__(self, folder: Path, project: str) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                "`wandb_project` is set, but wandb is not installed.",
                "`pip install 'swift-mega[wandb]'`, or leave the option out.",
            ) from None
        record = folder / "wandb_id"
        if not record.exists():
            record.write_text(uuid.uuid4().hex, encoding="utf-8")
        run_id = record.read_text(encoding="utf-8")
        self.run = wandb.init(project=project, name=folder.name, id=run_id, resume="allow", dir=str(folder))

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
