"""`make demo` with a small model: from the first command to the summary, stopped once with Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.summary import Start, check
from tests.support.distributed import ROOT

KEPT = [Start("TP3+SP", 12, 100.0), Start("PP2", 12, 100.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> str:
    """The output of a demo that Ctrl-C stops in its first training run."""
    demo = start(folder)
    metrics = folder / "run" / "metrics.jsonl"
    while demo.poll() is None and not metrics.exists():
        time.sleep(0.05)
    if demo.poll() is None:
        os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    return output


@pytest.fixture(scope="module")
def finished(folder: Path, interrupted: str) -> str:
    """The output of the second `make demo`, which goes on from there."""
    demo = start(folder)
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    return output


def start(folder: Path) -> "subprocess.Popen[str]":
    """The demo in a process group of its own, as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.tiny_demo", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_ctrl_c_says_how_to_go_on(interrupted: str) -> None:
    assert interrupted.rstrip().endswith("Stopped. `make demo` goes on from here.")


def test_the_impossible_layout_is_explained(interrupted: str) -> None:
    assert "4 attention heads / 3 leaves 1" in interrupted


def test_every_promise_is_kept(finished: str, folder: Path) -> None:
    assert finished.count("✓") == 3 and "✗" not in finished
    assert "12 on TP2+SP and 12 on PP2" in finished
    assert (folder / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_done_is_not_done_again(finished: str) -> None:
    assert finished.count("done already") >= 6
    assert "HF → Megatron:" not in finished


def test_a_third_run_is_immediate_and_shows_the_same_summary(finished: str, folder: Path) -> None:
    started = time.monotonic()
    again = start(folder)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert output.count("done already") == 10
    assert output.partition("Summary")[2].splitlines()[:12] == finished.partition("Summary")[2].splitlines()[:12]
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("megatron", "transformers", "starts"),
    [
        pytest.param((3.0, 3.1), (3.0, 3.1), KEPT, id="the loss rose"),
        pytest.param((3.0, 2.9), (3.0, 2.9002), KEPT, id="the losses disagree"),
        pytest.param((3.0, 2.9), (3.0, 2.9), KEPT[:1], id="one layout only"),
        pytest.param((3.0, 2.9), (3.0, 2.9), [KEPT[0], Start("PP2", 11, 100.0)], id="too few steps"),
    ],
)
def test_a_broken_promise_is_noticed(
    megatron: tuple[float, float], transformers: tuple[float, float], starts: list[Start]
) -> None:
    assert list(check(megatron, transformers, starts).values()).count(False) == 1


def test_kept_promises() -> None:
    assert all(check((3.0, 2.9), (3.00001, 2.90001), KEPT).values())
