"""`--export-hf`: each checkpoint also as a Hugging Face folder, the one that `convert` would make of it, or none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters.stores import safetensors
from converters.view import MegatronView
from swift_mega.train.export import Exporter
from tests.support import cli


class Killed(BaseException):
    """Stands for `kill -9`: nothing that tidies up behind a user's mistake sees it."""


Command = Callable[..., list[str]]


@pytest.fixture
def command(base: dict[str, Any], tmp_path: Path) -> Command:
    """A run of 3 steps in `out`, each saved, of which two stay."""

    def argv(*options: str) -> list[str]:
        train = {**base["train"], "steps": 3, "eval_batches": 0}
        checkpoint = {"save_interval_steps": 1, "export_hf": True}
        file = tmp_path / "run.yaml"
        file.write_text(json.dumps({**base, "train": train, "checkpoint": checkpoint}))
        return ["pretrain", str(file), "--output", str(tmp_path / "out"), *options]

    return argv


def exports(folder: Path) -> list[str]:
    """What has the name of a finished export."""
    return sorted(path.name for path in (folder / "out" / "hf").glob("*") if not path.suffix)


def assert_as_converted(folder: Path, step: str) -> None:
    """The export holds the files that `convert` makes of the checkpoint of that step, byte for byte."""
    converted = folder / f"converted-{step}"
    assert cli.in_process(["convert", str(folder / "out" / "checkpoints" / step), str(converted)]).code == 0
    exported = folder / "out" / "hf" / step
    names = sorted(path.name for path in converted.iterdir())
    assert sorted(path.name for path in exported.iterdir()) == names
    for name in names:
        assert (exported / name).read_bytes() == (converted / name).read_bytes(), name


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_export_is_what_convert_makes_of_the_checkpoint(
    command: Command, tmp_path: Path, distributed: Any, world_size: int
) -> None:
    if world_size == 1:
        ended = cli.in_process(command())
    else:
        ended = cli.on_ranks(distributed, command("--tensor-model-parallel-size", "2"))
    assert ended.code == 0, ended
    assert exports(tmp_path) == ["iter_0000002", "iter_0000003"]
    for step in exports(tmp_path):
        assert_as_converted(tmp_path, step)


MOMENTS: dict[str, tuple[Any, str]] = {
    "while weights are written": (MegatronView, "write"),
    "before files have their names": (safetensors, "finish"),
    "before the folder has its name": (Exporter, "_finish"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_export_has_no_final_name_and_is_made_up_for(
    command: Command, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.in_process(command("--stop-after-steps", "2")).code == 0
    owner, name = MOMENTS[moment]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, raising(Killed()))
        assert "Killed" in cli.in_process(command()).err
    assert exports(tmp_path) == ["iter_0000001", "iter_0000002"]  # of finished ones none went for an unfinished one
    assert [path.name for path in (tmp_path / "out" / "hf").glob("*.unfinished")] == ["iter_0000003.unfinished"]

    ended = cli.in_process(command())
    assert ended.code == 0 and "step 3: exported" in ended.out, ended
    assert exports(tmp_path) == ["iter_0000002", "iter_0000003"]
    assert_as_converted(tmp_path, "iter_0000003")
    assert not any((tmp_path / "out").rglob("*.unfinished"))


def raising(error: BaseException) -> Callable[..., None]:
    """A function that raises."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
