"""`make tune`: tune a real model with LoRA on real dialogues, teach it preferences by DPO, and let transformers judge.

    python -m examples.tune

30 steps of LoRA and a short DPO on two CPU cores. Every step is a command that you can type yourself, and is printed
before it runs. What is done already is not done again.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.demo import Step, activation, perform_all
from examples.terminal import bold, dim, heading
from swift_mega.base import metrics
from swift_mega.base.config import read_yaml
from swift_mega.base.console import say

TOLERANCE = 1e-4
"""How far the held-out losses of the run and of transformers may lie apart, in nats per token."""

STAGES = ("before", "after LoRA", "after DPO")


@dataclass(frozen=True)
class Tuning:
    """What is tuned, and where; the test has a smaller one."""

    sft_yaml: Path
    dpo_yaml: Path
    folder: Path
    """Of all that is made, but for the model."""
    model_command: tuple[str, ...]
    data_command: tuple[str, ...]

    @property
    def models(self) -> tuple[Path, Path, Path]:
        """As it was, after LoRA and after DPO."""
        return (
            Path(read_yaml(self.sft_yaml)["model"]),
            Path(read_yaml(self.dpo_yaml)["model"]),
            self.folder / "preferring",
        )

    @property
    def adapters(self) -> tuple[Path, Path]:
        """Of LoRA and of DPO."""
        sft, dpo = (Path(read_yaml(file)["output"]) / "model" for file in (self.sft_yaml, self.dpo_yaml))
        return sft, dpo

    @property
    def data(self) -> Path:
        """What `data_command` writes."""
        return self.folder / "data"

    def judged(self, stage: int) -> Path:
        """What transformers says of one of `models`."""
        return self.folder / f"judged-{stage}.json"


SMOLLM2 = Tuning(
    sft_yaml=Path("examples/tune.yaml"),
    dpo_yaml=Path("examples/prefer.yaml"),
    folder=Path("demo/tune"),
    model_command=("python", "-m", "examples.smollm2", "demo/smollm2"),
    data_command=("python", "-m", "examples.dialogues", "demo/tune/data"),
)


def steps(tuning: Tuning) -> list[Step]:
    """From the first command to the last."""
    adapters, made = tuning.adapters, tuning.models
    return [
        Step(
            "A pretrained model in Hugging Face format",
            "SmolLM2-135M-Instruct comes inside a Python package, so nothing is downloaded from a hub.",
            tuning.model_command,
            (made[0] / "config.json").is_file,
        ),
        Step(
            "Questions and answers",
            "English dialogues of another package (BSD). No question of the held-out half is trained on.",
            tuning.data_command,
            (tuning.data / "held-pairs.jsonl").is_file,
        ),
        _judge(tuning, 0, "Before: what transformers makes of the model"),
        Step(
            "LoRA: 30 steps",
            "The answers alone are trained on, through the model's own chat template.",
            ("swift-mega", "bridge", "sft", str(tuning.sft_yaml)),
            (adapters[0] / "adapter_config.json").is_file,
        ),
        _merge(made[0], adapters[0], made[1], "The adapter becomes part of the model"),
        _judge(tuning, 1, "After LoRA"),
        Step(
            "DPO: the right answer rather than another one",
            "The worse answer of each pair is the right one to another question.",
            ("swift-mega", "bridge", "rlhf", str(tuning.dpo_yaml)),
            (adapters[1] / "adapter_config.json").is_file,
        ),
        _merge(made[1], adapters[1], made[2], "This adapter, too"),
        _judge(tuning, 2, "After DPO"),
    ]


def _judge(tuning: Tuning, stage: int, title: str) -> Step:
    model, target = tuning.models[stage], tuning.judged(stage)
    command = ("python", "-m", "examples.tune_judge", str(model), str(tuning.data), str(target))
    return Step(
        title, "The loss of held-out answers, and how much likelier they are than worse ones.", command, target.is_file
    )


def _merge(base: Path, adapter: Path, target: Path, title: str) -> Step:
    command = ("swift-mega", "convert", str(base), str(target), "--to", "hf", "--adapter", str(adapter))
    return Step(title, "Merged in fp32; a Hugging Face folder as any other.", command, (target / "config.json").is_file)


def run(tuning: Tuning) -> int:
    """Do the steps that are not done yet and print what came of it all; the exit code of the process."""
    started = time.monotonic()
    plan = steps(tuning)
    say(f"{len(plan)} steps, each one command; all files go to {tuning.folder}/.")
    if shown := activation():
        say(f"To type the commands yourself: {bold(shown)}")
    if code := perform_all(plan, "make tune"):
        return code
    failed = show(tuning)
    say(dim(f"\n{time.monotonic() - started:.0f} s. To start over: rm -r {tuning.folder}"))
    return 1 if failed else 0


def show(tuning: Tuning) -> list[str]:
    """Print the results; the promises that were not kept."""
    judged = [json.loads(tuning.judged(stage).read_text(encoding="utf-8")) for stage in range(len(STAGES))]
    lines = metrics.read(tuning.adapters[0].parent)
    evaluated = [line["eval/loss"] for line in lines if "eval/loss" in line]
    heading("Summary", f"{judged[0]['tokens']:,} held-out tokens, no step has seen them.")
    say(f"{'':<44}" + "".join(f"{stage:>12}" for stage in STAGES))
    for title, name, form in (
        ("held-out loss", "loss", "{:.4f}"),
        ("right answer likelier than the worse one, by", "margin", "{:.2f}"),
        ("… in how many of the pairs", "preferred", "{:.0%}"),
    ):
        say(f"{title:<44}" + "".join(f"{form.format(result[name]):>12}" for result in judged))
    for question in judged[0]["answers"]:
        say(f"\n{bold(question)}")
        for stage, result in zip(STAGES, judged, strict=True):
            say(f"  {stage + ':':<12} {' '.join(result['answers'][question].split())}")
    say()
    promises = check(judged, (evaluated[0], evaluated[-1]))
    for promise, kept in promises.items():
        say(f"{'✓' if kept else '✗'} {promise}")
    return [promise for promise, kept in promises.items() if not kept]


def check(judged: list[dict[str, Any]], evaluated: tuple[float, float]) -> dict[str, bool]:
    """Each promise in words, and whether it was kept.

    Args:
        judged: by transformers, at each of `STAGES`.
        evaluated: the run's own held-out loss before and after LoRA.
    """
    before, tuned, preferring = judged
    gap = max(abs(ours - theirs["loss"]) for ours, theirs in zip(evaluated, (before, tuned), strict=True))
    return {
        f"LoRA lowered the held-out loss by {before['loss'] - tuned['loss']:.3f}": tuned["loss"] < before["loss"],
        f"the run and transformers agree on it within {gap:.0e}": gap <= TOLERANCE,
        f"DPO raised the margin by {preferring['margin'] - tuned['margin']:.2f} nats an answer": (
            preferring["margin"] > tuned["margin"]
        ),
    }


if __name__ == "__main__":
    sys.exit(run(SMOLLM2))
