"""Whose output folder it is, and where a start continues."""

from pathlib import Path

import pytest

from converters import checkpoint as layout
from swift_mega.base.errors import UserError
from swift_mega.methods.config import PretrainConfig
from swift_mega.methods.output import check_output, checkpoints, claim_output, exports, finished, resume_folder
from swift_mega.model.config import ModelConfig
from swift_mega.train.config import CheckpointConfig, TrainConfig


def config(folder: Path, resume: str = "auto", model: str = "m") -> PretrainConfig:
    return PretrainConfig(
        output=str(folder / "run"),
        model=ModelConfig(path=model),
        train=TrainConfig(steps=1),
        checkpoint=CheckpointConfig(resume=resume),
    )


def saved(root: Path, step: int) -> Path:
    """A folder that looks like a finished checkpoint."""
    folder = root / layout.iteration_name(step)
    folder.mkdir(parents=True)
    (folder / layout.MARKER).touch()
    (folder / ".metadata").touch()
    layout.write_tracker(root, step)
    return folder


def claimed(run: PretrainConfig) -> None:
    Path(run.output).mkdir()
    claim_output(run)


def test_the_same_run_may_come_back_on_another_layout(tmp_path: Path) -> None:
    run = config(tmp_path)
    claimed(run)
    run.parallel.tensor_model_parallel_size = 2
    check_output(run)


def test_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    claimed(config(tmp_path))
    with pytest.raises(UserError, match=r"model\.path: 'm' there, 'other' here"):
        check_output(config(tmp_path, model="other"))


def test_another_spelling_of_a_path_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    claimed(config(tmp_path))
    for spelling in ("./m", "m/", str(tmp_path / "m")):
        check_output(config(tmp_path, model=spelling))
    run = config(tmp_path)
    run.data.split = "1,0,0"
    check_output(run)


def test_other_data_in_its_place_is_refused(good: tuple[Path, Path], tmp_path: Path) -> None:
    from swift_mega.data.build import build

    model, _ = good
    texts, prefix = tmp_path / "texts.txt", tmp_path / "data"
    texts.write_text("In the beginning")
    build([str(texts)], str(model), prefix, workers=1)
    run = config(tmp_path)
    run.data.train = [str(prefix)]
    claimed(run)
    build([str(texts)], str(model), prefix, workers=1, overwrite=True)
    check_output(run)
    texts.write_text("In the beginninG")
    build([str(texts)], str(model), prefix, workers=1, overwrite=True)
    for manifest in (True, False):
        if not manifest:  # as another tool leaves it; then it is known by the lengths of its documents
            Path(f"{prefix}.json").unlink()
        with pytest.raises(UserError, match=f"{prefix} holds other data than the run(.|\n)*another `output`"):
            check_output(run)


def test_what_has_changed_is_said(tmp_path: Path) -> None:
    run = config(tmp_path)
    Path(run.output).mkdir()
    assert claim_output(run) == []
    run.model.precision, run.train.steps, run.parallel.sequence_parallel = "bf16", 3, True
    assert claim_output(run) == [
        'model.precision "auto" → "bf16"',
        "parallel.sequence_parallel false → true",
        "train.steps 1 → 3",
    ]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", ["run.yaml", "data.json"])
def test_a_disk_that_runs_full_under_the_records_does_no_harm(
    name: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there stays, and the folder is still the run's or nobody's."""

    def full(path: Path, content: str, encoding: str) -> int:
        with path.open("w", encoding=encoding) as file:
            file.write(content[: 0 if name in path.name else None])
        if name in path.name:
            raise OSError(28, "No space left on device")
        return len(content)

    run = config(tmp_path)
    if before:
        claimed(run)
    with monkeypatch.context() as patched, pytest.raises(UserError, match="is full"):
        patched.setattr(Path, "write_text", full)
        claim_output(run) if before else claimed(run)
    check_output(run)
    claim_output(run)
    check_output(run)


def test_never_refuses_a_used_folder(tmp_path: Path) -> None:
    claimed(config(tmp_path))
    with pytest.raises(UserError, match="already holds a run"):
        check_output(config(tmp_path, resume="never"))


def test_a_folder_of_somebody_elses_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no run"):
        check_output(config(tmp_path))


def test_auto_takes_the_newest_checkpoint_or_none(tmp_path: Path) -> None:
    run = config(tmp_path)
    assert resume_folder(run) is None
    saved(checkpoints(run), 2)
    newest = saved(checkpoints(run), 4)
    assert resume_folder(run) == newest


def test_auto_survives_a_kill_between_the_first_checkpoint_and_its_tracker(tmp_path: Path) -> None:
    run = config(tmp_path)
    folder = saved(checkpoints(run), 2)
    (checkpoints(run) / layout.TRACKER).unlink()
    assert resume_folder(run) == folder


def test_a_path_is_where_the_run_begins_and_its_own_checkpoints_win_later(tmp_path: Path) -> None:
    elsewhere = saved(tmp_path / "base", 100)
    run = config(tmp_path, resume=str(tmp_path / "base"))
    assert resume_folder(run) == elsewhere
    own = saved(checkpoints(run), 102)
    assert resume_folder(run) == own


def test_a_path_among_its_own_checkpoints_goes_back(tmp_path: Path) -> None:
    run = config(tmp_path)
    earlier = saved(checkpoints(run), 2)
    newest = saved(checkpoints(run), 4)
    assert resume_folder(config(tmp_path, resume=str(earlier))) == earlier
    (newest / ".metadata").unlink()
    with pytest.raises(UserError, match=f"no finished checkpoint.\n.*{earlier}"):
        resume_folder(run)
    assert resume_folder(config(tmp_path, resume=str(earlier))) == earlier


def test_a_run_with_all_its_steps_is_finished(tmp_path: Path) -> None:
    run = config(tmp_path)
    assert finished(run) is None
    last = saved(checkpoints(run), 6)
    outcome = finished(run)
    assert outcome and (outcome.step, outcome.checkpoint) == (6, last)
    run.checkpoint.export_hf = True
    assert finished(run) is None
    (exports(run) / last.name).mkdir(parents=True)
    assert finished(run)
    run.train.steps = 7
    assert finished(run) is None


def test_a_run_cannot_begin_at_its_end(tmp_path: Path) -> None:
    saved(tmp_path / "base", 100)
    with pytest.raises(UserError, match=r"is at step 100, and the run ends with step 1 (.|\n)*model\.path="):
        finished(config(tmp_path, resume=str(tmp_path / "base")))


@pytest.mark.parametrize(
    ("newest", "keep_last", "removed"), [(4, 0, []), (4, 1, [1, 2, 3]), (4, 2, [1, 2]), (2, 1, [1]), (2, 3, [])]
)
def test_a_run_that_went_back_keeps_what_it_saves(
    tmp_path: Path, newest: int, keep_last: int, removed: list[int]
) -> None:
    steps = {step: tmp_path / layout.iteration_name(step) for step in range(1, 5)}
    assert layout.outdated(list(steps.values()), steps[newest], keep_last) == [steps[step] for step in removed]
