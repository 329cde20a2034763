"""The built wheel in an environment of its own, used from an empty folder and beside packages named like ours."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support import newcomer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel alone; the libraries it needs are borrowed from ours."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # A copy, so that neither build/ nor an .egg-info of the source tree gets in.
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")

    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    # A path in a .pth file is not searched for .pth files itself, so our editable install stays out.
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    ours = Path(next(path for path in sys.path if path.endswith("site-packages")))
    (packages / "borrowed.pth").write_text(f"{ours}\n", encoding="utf-8")
    return folder / "venv"


@pytest.fixture(params=["an empty folder", "a folder with launch/ and converters/"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a user starts the commands."""
    if request.param != "an empty folder":
        for name in ("launch", "converters"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    return tmp_path


def test_convert_and_pretrain(environment: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    material = tmp_path_factory.mktemp("material")
    model, texts = newcomer.tiny_model(material / "model"), newcomer.texts(material / "texts")

    def run(*command: str | Path) -> str:
        program = [environment / "bin" / command[0], *command[1:]]
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            program, cwd=folder, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    where = run("python", "-P", "-c", "import swift_mega, launch, converters; print(swift_mega.__file__)")
    assert str(environment) in where

    run("swift-mega", "convert", model, "megatron")
    run("swift-mega", "convert", "megatron", "back")
    assert (folder / "back" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()

    run("swift-mega", "data", "build", texts / "*.jsonl", "--tokenizer", model, "--output", "data/texts")
    options = [
        "--model.path",
        "megatron",
        "--data.train",
        "data/texts",
        "--split",
        "90,10,0",
        "--sequence-length",
        "32",
    ]
    options += ["--steps", "2", "--eval-batches", "1", "--global-batch-size", "2", "--tensor-model-parallel-size", "2"]
    run("swift-mega", "pretrain", "--output", "by-cli", "--nproc", "2", *options)
    # torchrun is the launcher's module run by this environment's Python: the script belongs to ours.
    torchrun = ["python", "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(*torchrun, "-m", "swift_mega", "pretrain", "--output", "by-torchrun", *options)
    for output in ("by-cli", "by-torchrun"):
        assert (folder / output / "checkpoints" / "latest_checkpointed_iteration.txt").read_text().strip() == "2"
        assert (folder / output / "loss.png").exists()
