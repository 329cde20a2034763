from pathlib import Path

import pytest

from tests.hf_bridge.methods import runs


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> runs.Ground:
    return runs.ground(tmp_path_factory.mktemp("tuning"))


@pytest.fixture
def own_output(tmp_path: Path) -> str:
    """An output folder for one test."""
    return str(tmp_path / "out")
