"""A run from its first trace in the output folder to its end, in this process."""

import os
import signal

import pytest

from converters.convert import convert
from swift_mega.methods.config import PretrainConfig
from swift_mega.methods.output import claim_output
from tests.support import cli
from tests.support.place import Place
from tests.support.runs import values
from tests.support.tiny_quantised import fp8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_has_begun_is_saved_when_it_is_stopped(
    place: Place, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before its first step: the earliest that anybody can see it is `run.yaml`."""

    def claim_and_be_told_to_stop(config: PretrainConfig) -> list[str]:
        changes = claim_output(config)
        os.kill(os.getpid(), number)
        return changes

    handler = signal.getsignal(number)
    monkeypatch.setattr("swift_mega.methods.run.claim_output", claim_and_be_told_to_stop)
    ended = cli.in_process(place.argv("--steps", "9"))
    assert ended.code == 0, ended
    assert f"received {number.name}. The same command continues." in ended.out
    assert len(list((place.output / "checkpoints").glob("iter_*"))) == 1
    assert signal.getsignal(number) == handler


def test_a_finished_run_says_so_and_does_nothing(trained: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.local.run", lambda *args: pytest.fail("processes were started"))
    monkeypatch.setattr("swift_mega.compat.install", lambda: pytest.fail("torch was asked for"))
    before = (trained.output / "metrics.jsonl").read_text()
    for options in ([], ["--nproc", "2"], ["--steps", "1", "--lr-warmup-steps", "0"]):
        ended = cli.in_process(trained.argv(*options))
        assert ended.code == 0, ended
        assert "is finished: iter_0000002 has all " in ended.out
    assert (trained.output / "metrics.jsonl").read_text() == before


def test_a_resumed_run_says_what_has_changed(trained: Place) -> None:
    ended = cli.in_process(trained.argv("--steps", "3"))
    assert ended.code == 0, ended
    changed = "Changed since the start before: train.steps 2 → 3, checkpoint.save_interval_steps 1 → null"
    assert ended.out.count(changed) == 1


def test_a_run_from_quantised_weights_is_the_run_from_what_they_stand_for(place: Place) -> None:
    quantised = fp8(place.model, place.folder / "fp8", (7, 5))
    convert(quantised, place.folder / "plain", to="hf")
    losses = []
    for name in ("fp8", "plain"):
        place.model, place.output = place.folder / name, place.folder / f"run-{name}"
        ended = cli.in_process(place.argv("--export-hf", "true"))
        assert ended.code == 0, ended
        losses.append(values(place.output, "loss"))
        configs = [file.read_text() for file in place.output.rglob("config.json")]
        assert configs and not any("quantization_config" in config for config in configs)
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_no_data(place: Place) -> None:
    argv = ["pretrain", "--output", str(place.output), "--model.path", str(place.model), "--steps", "1"]
    ended = cli.in_process([*argv, "--sequence-length", "16", "--dry-run"])
    cli.assert_explained(ended, "`data.train` names no data", "--data.train data/books")
