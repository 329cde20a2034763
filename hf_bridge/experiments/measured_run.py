"""One tuner, trained and measured in a process of its own, so that what it needs is its own.

python -m hf_bridge.experiments.measured_run JOB.json RESULT.json
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_bridge.experiments.measured import Measured
from hf_bridge.methods.config import TuneConfig
from hf_bridge.methods.run import run
from hf_bridge.methods.sft import SFT
from swift_mega.base import config as configs
from swift_mega.base import failures, metrics

UNMEASURED_STEPS = 1
"""At the start, where memory is allocated and kernels are chosen; none where the run has no more."""


class Meter(TrainerCallback):  # type: ignore[misc]
    """Counts parameters, and times optimizer steps; evaluations and saves count for nothing."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Parameters as they are when training begins; memory counts from here on, so that loading does not."""
        parameters = list(kwargs["model"].parameters())
        self.parameters = sum(param.numel() for param in parameters)
        self.trainable = sum(param.numel() for param in parameters if param.requires_grad)
        self.examples = len(kwargs["train_dataloader"].dataset)
        self.steps: list[tuple[float, float]] = []
        reset_peak_memory()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.mark, self.epoch = time.perf_counter(), float(state.epoch or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append((time.perf_counter() - self.mark, (state.epoch - self.epoch) * self.examples))

    @property
    def samples_per_s(self) -> float:
        """Of the steps that count."""
        counted = self.steps[UNMEASURED_STEPS:] or self.steps
        return sum(samples for _, samples in counted) / sum(seconds for seconds, _ in counted)


def reset_peak_memory() -> None:
    """Let the peak begin with what is held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark of resident memory


def peak_memory_bytes() -> int:
    """Since the reset: reserved on the GPU, as the paper's figures are; on a CPU resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main(job: Path, result: Path) -> None:
    """Train what `job` says and write what was measured to `result`."""
    config = configs.build(TuneConfig, json.loads(job.read_text(encoding="utf-8")), str(job))
    meter = Meter()
    outcome = run(config, SFT, [meter])
    peak = peak_memory_bytes()
    lines = metrics.read(Path(config.output))
    losses = [line["loss"] for line in lines if "loss" in line]
    found = Measured(
        train_loss=sum(losses) / len(losses),
        eval_loss=[line["eval/loss"] for line in lines if "eval/loss" in line][-1],
        trainable=meter.trainable,
        parameters=meter.parameters,
        memory_gib=peak / 2**30,
        samples_per_s=meter.samples_per_s,
        steps=outcome.step,
    )
    result.write_text(json.dumps(found._asdict(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with failures.explained() as ended:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.exit(ended.exit_code)
