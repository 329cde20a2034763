"""`make demo`: continue the pretraining of a real model on a real text, and talk to the result.

    python -m examples.demo

Hugging Face model → Megatron checkpoint → 12 steps on three processes (tensor and sequence parallel) →
12 more steps of the same run on two processes (pipeline parallel) → Hugging Face model, all on two CPU
cores. Every step is a command that you can type yourself, and is printed before it runs. What is
done already is not done again: stop with Ctrl-C whenever you like, and the same command goes on.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from converters import checkpoint
from examples import summary
from examples.terminal import bold, dim, heading
from swift_mega.base import config as configs
from swift_mega.base.console import say
from swift_mega.methods.config import PretrainConfig

STOPPED = 130
"""Exit code of a process that Ctrl-C has ended."""


@dataclass(frozen=True)
class Layout:
    """How a start is spread over processes."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Demo:
    """What the demo is about; the test of the demo has a smaller one."""

    run_yaml: Path
    model: Path
    """The Hugging Face folder that `model_command` writes."""
    model_command: tuple[str, ...]
    impossible: Layout
    first: Layout
    second: Layout
    first_steps: int = 12
    """Steps on the first layout; the rest of the run is done on the second."""

    @property
    def config(self) -> PretrainConfig:
        return configs.build(PretrainConfig, configs.read_yaml(self.run_yaml), str(self.run_yaml))

    @property
    def folder(self) -> Path:
        """Everything is written below this folder."""
        return self.model.parent


SMOLLM2 = Demo(
    run_yaml=Path("examples/pretrain.yaml"),
    model=Path("demo/smollm2"),
    model_command=("python", "-m", "examples.smollm2", "demo/smollm2"),
    impossible=Layout("TP2", ("--nproc", "2", "--tensor-model-parallel-size", "2")),
    first=Layout("TP3+SP", ("--nproc", "3", "--tensor-model-parallel-size", "3", "--sequence-parallel")),
    second=Layout("PP2", ("--nproc", "2", "--pipeline-model-parallel-size", "2")),
)


@dataclass(frozen=True)
class Step:
    """One command, why it is run, and how to see that it has been."""

    title: str
    why: str
    command: tuple[str, ...]
    done: Callable[[], bool]
    exit_code: int = 0
    """What the command is to end with."""


def steps(demo: Demo) -> list[Step]:
    """The demo from the first command to the last, as far as the run has come now."""
    config, run, yaml = demo.config, Path(demo.config.output), str(demo.run_yaml)
    megatron, corpus, exported = Path(config.model.path), demo.folder / "kjv.jsonl", demo.folder / "exported"
    tokens = Path(config.data.train[0])
    before, after = summary.before(demo.folder), summary.after(demo.folder)
    checkpoints = run / "checkpoints"
    trained = steps_done(checkpoints)
    # Fewer than all of them when the first start was interrupted.
    first_steps = demo.first_steps - trained if trained < demo.first_steps else demo.first_steps

    return [
        Step(
            "A pretrained model in Hugging Face format",
            "SmolLM2-135M-Instruct comes inside a Python package, so nothing is downloaded from a hub.",
            demo.model_command,
            (demo.model / "config.json").is_file,
        ),
        Step(
            "A real text",
            "The King James Bible, public domain, from another package: one chapter a document.",
            ("python", "-m", "examples.corpus", str(corpus)),
            corpus.is_file,
        ),
        Step(
            "Text → tokens",
            "Megatron reads token files, .bin and .idx; the model's own tokenizer makes them.",
            ("swift-mega", "data", "build", str(corpus), "--tokenizer", str(demo.model), "--output", str(tokens)),
            tokens.with_name(tokens.name + ".json").is_file,
        ),
        Step(
            "Before: what transformers makes of the model",
            "The loss on held-out chapters and a continuation, to compare with later.",
            ("python", "-m", "examples.judge", str(demo.model), yaml, str(before)),
            before.is_file,
        ),
        Step(
            "Hugging Face → Megatron",
            "One checkpoint that loads on any parallel layout. The same bytes come back in the other direction.",
            ("swift-mega", "convert", str(demo.model), str(megatron)),
            (megatron / checkpoint.TRACKER).is_file,
        ),
        Step(
            f"A layout that cannot work: {demo.impossible.name}",
            "A wrong number is refused before a process starts, with the numbers that would do. (Exit code 2.)",
            ("swift-mega", "pretrain", yaml, *demo.impossible.options),
            lambda: steps_done(checkpoints) > 0,
            exit_code=2,
        ),
        Step(
            f"Continued pretraining: {demo.first_steps} steps on {demo.first.name}",
            "Every layer's matrices and every sequence are cut over the processes.",
            ("swift-mega", "pretrain", yaml, *demo.first.options, "--stop-after-steps", str(first_steps)),
            lambda: steps_done(checkpoints) >= demo.first_steps,
        ),
        Step(
            f"The same run, resumed on {demo.second.name}: steps {demo.first_steps + 1} to {config.train.steps}",
            "Each process holds half of the layers now. Weights, optimizer, schedule and data go on where they were.",
            ("swift-mega", "pretrain", yaml, *demo.second.options),
            lambda: steps_done(checkpoints) >= config.train.steps,
        ),
        Step(
            "Megatron → Hugging Face",
            "The checkpoint holds config and tokenizer too, so the export needs nothing else.",
            ("swift-mega", "convert", str(checkpoints), str(exported)),
            (exported / "config.json").is_file,
        ),
        Step(
            "After: what transformers makes of the export",
            "The same chapters and the same prompt as before.",
            ("python", "-m", "examples.judge", str(exported), yaml, str(after)),
            after.is_file,
        ),
    ]


def steps_done(checkpoints: Path) -> int:
    """The step of the newest checkpoint of a run, 0 without one."""
    folders = checkpoint.iterations(checkpoints)
    return int(folders[-1].name.removeprefix("iter_")) if folders else 0


def run(demo: Demo) -> int:
    """Do the steps that are not done yet and print what came of it all; the exit code of the process."""
    started = time.monotonic()
    plan = steps(demo)
    say(f"{len(plan)} steps, each one command; all files go to {demo.folder}/ (6 GB at most).")
    if shown := activation():
        say(f"To type the commands yourself: {bold(shown)}")
    if code := perform_all(plan, "make demo"):
        return code
    failures = summary.show(demo.folder, demo.config)
    say(dim(f"\n{time.monotonic() - started:.0f} s. To start over: rm -r {demo.folder}"))
    return 1 if failures else 0


def perform_all(plan: list[Step], again: str) -> int:
    """Do the steps that are not done yet; 0 if all did what they should, otherwise an exit code.

    Args:
        again: the command that goes on after an interruption.
    """
    for number, step in enumerate(plan, 1):
        title = f"{number}/{len(plan)}  {step.title}"
        if step.done():
            say(f"\n{bold(f'━━ {title}')} – done already\n{dim(f'$ {shlex.join(step.command)}')}")
            continue
        heading(title, step.why)
        if code := perform(step, again):
            return code
    return 0


def perform(step: Step, again: str) -> int:
    """Run the command of a step; 0 if it did what it should, otherwise an exit code."""
    say(bold(f"$ {shlex.join(step.command)}"))
    started = time.monotonic()
    code, interrupted = execute(step.command)
    if interrupted or code == STOPPED:
        say(f"\nStopped. `{again}` goes on from here.")
        return STOPPED
    if code != step.exit_code:
        say(f"\nThis command ended with exit code {code} instead of {step.exit_code}; the demo stops here.")
        return code or 1
    if not (step.exit_code or step.done()):
        say("\nThis command ended well, but has not done all it should; the demo stops here.")
        return 1
    say(dim(f"{time.monotonic() - started:.0f} s"))
    return 0


def execute(command: tuple[str, ...]) -> tuple[int, bool]:
    """The exit code of `command`, and whether somebody wanted to stop meanwhile.

    A training run needs some seconds to save after Ctrl-C, so it is waited for. The terminal sends Ctrl-C
    to the command as well; SIGTERM reaches us alone, so it is passed on.
    """
    with subprocess.Popen(resolve(command)) as child:
        received = []

        def stop(number: int, frame: FrameType | None) -> None:
            received.append(number)
            if number == signal.SIGTERM:
                child.send_signal(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return child.wait(), bool(received)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def resolve(command: tuple[str, ...]) -> list[str]:
    """`command` with the python and the console script of this environment, whether it is activated or not."""
    program = sys.executable if command[0] == "python" else str(Path(sys.executable).with_name(command[0]))
    return [program, *command[1:]]


def activation() -> str:
    """How to put this environment on the path of a shell; empty where it is."""
    folder = Path(sys.prefix)
    if os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return ""
    return f"source {folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}/bin/activate"


if __name__ == "__main__":
    sys.exit(run(SMOLLM2))
