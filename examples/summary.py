"""What came of the demo: the model before and after as a table, and whether every promise was kept."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.terminal import bold, heading
from swift_mega.base import metrics
from swift_mega.base.console import say
from swift_mega.methods.config import PretrainConfig

TOLERANCE = 1e-4
"""How far the losses of Megatron and of transformers may lie apart, in nats per token."""

WARMUP_STEPS = 2
"""Steps of each start that do not count for its speed."""


@dataclass(frozen=True)
class Start:
    """What the run did on one layout."""

    layout: str
    steps: int
    tokens_per_s: float


def before(folder: Path) -> Path:
    """What transformers said of the model before training."""
    return folder / "before.json"


def after(folder: Path) -> Path:
    """What transformers said of the export."""
    return folder / "after.json"


def show(folder: Path, config: PretrainConfig) -> list[str]:
    """Print the results; the promises that were not kept."""
    run = Path(config.output)
    judged = [json.loads(file.read_text(encoding="utf-8")) for file in (before(folder), after(folder))]
    lines = metrics.read(run)
    trained = [line["eval/loss"] for line in lines if "eval/loss" in line]
    megatron, transformers = (trained[0], trained[-1]), (judged[0]["loss"], judged[1]["loss"])
    layouts = starts(lines)

    heading("Summary", f"{judged[0]['tokens']:,} held-out tokens, no step has seen them.")
    say(f"{'':<32}{'before':>10}{'after':>10}")
    for name, pair in (("held-out loss, Megatron", megatron), ("held-out loss, transformers", transformers)):
        say(f"{name:<32}{pair[0]:>10.4f}{pair[1]:>10.4f}")
    say()
    for start in layouts:
        say(f"{start.layout:<10}{start.steps:>3} steps{start.tokens_per_s:>8,.0f} tokens/s")
    say(f"\n{bold(judged[0]['prompt'])} …")
    for name, result in zip(("before", "after"), judged, strict=True):
        say(f"  {name + ':':<8} … {' '.join(result['continuation'].split())}")
    say()

    promises = check(megatron, transformers, layouts)
    for promise, kept in promises.items():
        say(f"{'✓' if kept else '✗'} {promise}")
    failed = [promise for promise, kept in promises.items() if not kept]
    if failed:
        say(f"\nThe demo failed: {len(failed)} of {len(promises)} promises above were not kept.")
    say(f"\nLook at {bold(str(run / 'loss.png'))}. Then continue your own model: {bold('swift-mega pretrain --help')},")
    say(f"a run in a file is {bold('examples/pretrain.yaml')}, and README.md says the rest.")
    return failed


def check(megatron: tuple[float, float], transformers: tuple[float, float], layouts: list[Start]) -> dict[str, bool]:
    """Each promise in words, and whether it was kept. Losses are (before, after)."""
    gap = max(abs(ours - theirs) for ours, theirs in zip(megatron, transformers, strict=True))
    done = " and ".join(f"{start.steps} on {start.layout}" for start in layouts)
    return {
        f"the held-out loss fell by {megatron[0] - megatron[1]:.3f}": transformers[1] < transformers[0],
        f"Megatron and transformers agree on it within {gap:.0e}": gap <= TOLERANCE,
        f"one run on two layouts, at least 12 steps each: {done}": (
            len({start.layout for start in layouts}) >= 2 and all(start.steps >= 12 for start in layouts)
        ),
    }


def starts(lines: list[dict[str, Any]]) -> list[Start]:
    """The layouts of a run in order; starts of the same layout one after another count as one."""
    layouts: list[tuple[str, list[float], int]] = []
    for line in lines:
        if "start" in line:
            if not layouts or layouts[-1][0] != line["start"]:
                layouts.append((line["start"], [], 0))
            skip = WARMUP_STEPS
        elif "tokens_per_s" in line:
            name, speeds, count = layouts[-1]
            layouts[-1] = (name, speeds + [line["tokens_per_s"]] * (skip <= 0), count + 1)
            skip -= 1
    return [Start(name, count, statistics.median(speeds)) for name, speeds, count in layouts if speeds]
