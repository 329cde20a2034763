"""Families with layers of our own are trained, resumed on another layout, and exported like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.convert import convert
from swift_mega.model.logits import transformers_logits
from tests.support import runs, tiny
from tests.support.runs import values
from tests.train.conftest import FIRST_HALF, LAYOUTS, STOP, Plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = ("gemma3", "granite", "nemotron", "olmo2", "olmo3-yarn")
ELSEWHERE = "TP2+SP×PP2"


@pytest.fixture(scope="module")
def folder(base: dict[str, Any], tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each model a whole run on one process, and one that goes on on four."""
    folder = tmp_path_factory.mktemp("families")
    plan = Plan(base, folder)
    for name in NAMES:
        model = {"model": {"path": str(tiny_model(name))}}
        plan.add(f"{name}/straight", "TP1", model)
        plan.add(f"{name}/resumed", "TP1", model, FIRST_HALF)
        plan.add(f"{name}/resumed", ELSEWHERE, model)
    for world in sorted(plan.by_world):
        runs.launch(plan.by_world[world], world, folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_resumed_on_another_layout(name: str, folder: Path) -> None:
    assert LAYOUTS[ELSEWHERE][0] == 4
    straight, resumed = (values(folder / name / which, "loss") for which in ("straight", "resumed"))
    assert resumed[STOP:] == pytest.approx(straight[STOP:], rel=1e-5) and len(resumed) == len(straight)


@pytest.mark.parametrize("name", NAMES)
def test_exports_agree(name: str, folder: Path, tmp_path: Path) -> None:
    """Of checkpoints of both layouts, as transformers reads them."""
    logits = []
    for which in ("straight", "resumed"):
        convert(folder / name / which / "checkpoints", tmp_path / which)
        logits.append(transformers_logits(tmp_path / which, tiny.tokens(99)))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
