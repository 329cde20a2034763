"""Models with experts are trained, resumed and exported like any other, with the experts spread over processes, too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train import families

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = ("qwen3-moe", "deepseek-v3")
EP2 = {"parallel": {"expert_model_parallel_size": 2}}
ELSEWHERE: families.Halves = {
    "EP2": ("DP2", "DP2", EP2),
    "TP2×PP2": ("TP1", "TP2+SP×PP2", {}),
}


@pytest.fixture(scope="module")
def folder(base: dict[str, Any], tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each model a whole run on one process, and two that go on on several."""
    folder = tmp_path_factory.mktemp("experts")
    families.launch(base, folder, {name: tiny_model(name) for name in NAMES}, ELSEWHERE)
    return folder


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("name", NAMES)
def test_resumed_on_another_layout(name: str, where: str, folder: Path) -> None:
    families.assert_resumed(folder / name, where)


@pytest.mark.parametrize("name", NAMES)
def test_exports_agree(name: str, folder: Path, tmp_path: Path) -> None:
    families.assert_exports_agree(folder / name, ELSEWHERE, tmp_path)
