"""Models with experts are trained, resumed and exported like any other, with the experts spread over processes, too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.convert import convert
from swift_mega.model.logits import transformers_logits
from tests.support import runs, tiny
from tests.support.runs import values
from tests.train.conftest import FIRST_HALF, STOP, Plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = ("qwen3-moe", "deepseek-v3")
EP2 = {"parallel": {"expert_model_parallel_size": 2}}
ELSEWHERE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "EP2": ("DP2", "DP2", EP2),
    "TP2×PP2": ("TP1", "TP2+SP×PP2", {}),
}
"""Name → layouts of the first and the second half of the other runs, and what is changed of them."""


@pytest.fixture(scope="module")
def folder(base: dict[str, Any], tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each model a whole run on one process, and two that go on on several."""
    folder = tmp_path_factory.mktemp("experts")
    plan = Plan(base, folder)
    for name in NAMES:
        model = {"model": {"path": str(tiny_model(name))}}
        plan.add(f"{name}/straight", "TP1", model)
        for where, (first, then, change) in ELSEWHERE.items():
            plan.add(f"{name}/{where}", first, model, change, FIRST_HALF)
            plan.add(f"{name}/{where}", then, model, change)
    for world in sorted(plan.by_world):
        runs.launch(plan.by_world[world], world, folder)
    return folder


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("name", NAMES)
def test_resumed_on_another_layout(name: str, where: str, folder: Path) -> None:
    straight, resumed = (values(folder / name / which, "loss") for which in ("straight", where))
    assert resumed[STOP:] == pytest.approx(straight[STOP:], rel=1e-5) and len(resumed) == len(straight)


@pytest.mark.parametrize("name", NAMES)
def test_exports_agree(name: str, folder: Path, tmp_path: Path) -> None:
    """Of checkpoints of all layouts, as transformers reads them."""
    logits = []
    for number, which in enumerate(("straight", *ELSEWHERE)):
        convert(folder / name / which / "checkpoints", tmp_path / str(number))
        logits.append(transformers_logits(tmp_path / str(number), tiny.tokens(99)))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-4)
