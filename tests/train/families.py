"""Runs of several models that go on elsewhere, and what must hold of them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.convert import convert
from swift_mega.model.logits import transformers_logits
from tests.support import runs, tiny
from tests.support.runs import values
from tests.train.conftest import FIRST_HALF, STOP, Plan

STRAIGHT = "straight"
"""The whole run on one process, beside which those that stop and go on are held."""

Halves = dict[str, tuple[str, str, dict[str, Any]]]
"""Name of a run → layouts of its first and its second half, and what is changed of both."""


def launch(base: dict[str, Any], folder: Path, models: dict[str, Path], halves: Halves) -> None:
    """Do all runs of all models, each in the folder MODEL/RUN."""
    plan = Plan(base, folder)
    for name, path in models.items():
        model = {"model": {"path": str(path)}}
        plan.add(f"{name}/{STRAIGHT}", "TP1", model)
        for where, (first, then, change) in halves.items():
            plan.add(f"{name}/{where}", first, model, change, FIRST_HALF)
            plan.add(f"{name}/{where}", then, model, change)
    for world in sorted(plan.by_world):
        runs.launch(plan.by_world[world], world, folder)


def assert_resumed(model: Path, where: str) -> None:
    """The losses after the stop are those of the run that never stopped."""
    straight, resumed = (values(model / which, "loss") for which in (STRAIGHT, where))
    assert resumed[STOP:] == pytest.approx(straight[STOP:], rel=1e-5) and len(resumed) == len(straight)


def assert_exports_agree(model: Path, halves: Collection[str], target: Path) -> None:
    """Of checkpoints of all layouts, as transformers reads them."""
    logits = []
    for number, which in enumerate((STRAIGHT, *halves)):
        convert(model / which / "checkpoints", target / str(number))
        logits.append(transformers_logits(target / str(number), tiny.tokens(99)))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-4)
