"""A run from its first trace in the output folder to its end, in this process."""

import os
import signal

import pytest

from swift_mega.methods import run as run_module
from swift_mega.methods.config import PretrainConfig
from tests.support import cli
from tests.support.place import Place


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_has_begun_is_saved_when_it_is_stopped(
    place: Place, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before its first step: the earliest that anybody can see it is `run.yaml`."""
    claim = run_module.claim_output

    def claim_and_be_told_to_stop(config: PretrainConfig) -> None:
        claim(config)
        os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    monkeypatch.setattr(run_module, "claim_output", claim_and_be_told_to_stop)
    ended = cli.in_process(place.argv("--steps", "9"))
    assert ended.code == 0, ended
    assert f"received {number.name}. The same command continues." in ended.out
    assert len(list((place.output / "checkpoints").glob("iter_*"))) == 1
    assert signal.getsignal(number) == handler
