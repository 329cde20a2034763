"""A conversion that is killed, however often, is gone on with and ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from converters import engine
from converters.convert import convert

SLOWLY = """
import sys, time
from pathlib import Path
from converters import engine
from converters.convert import convert
from converters.options import Options

engine.PART_BYTES, run_of_bytes = 1 << 12, engine._copy_run

def slowly(*arguments):
    time.sleep(0.02)
    run_of_bytes(*arguments)

engine._copy_run = slowly
source, target, node_rank, nodes = sys.argv[1:]
convert(Path(source), Path(target), options=Options(nodes=int(nodes), node_rank=int(node_rank)))
"""
"""A conversion in small portions that takes about a second."""


def start(source: Path, target: Path, node_rank: int = 0, nodes: int = 1) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-c", SLOWLY, str(source), str(target), str(node_rank), str(nodes)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to_hf", [False, True])
@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random(kills: int, to_hf: bool, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    source = hf_model("qwen2")
    if to_hf:
        convert(source, tmp_path / "megatron")
        source = tmp_path / "megatron"
    convert(source, tmp_path / "expected")
    expected, moments, done = content(tmp_path / "expected"), random.Random(kills), 0
    for _ in range(kills):
        process = start(source, tmp_path / "target")
        time.sleep(moments.uniform(0.1, 1.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "target").exists():
            assert content(tmp_path / "target") == expected, "a target that looks finished is"
            for file in (tmp_path / "target").rglob("*"):
                if file.is_file():
                    file.unlink()
            os.rename(tmp_path / "target", tmp_path / f"removed{done}")
            done += 1
    assert start(source, tmp_path / "target").wait() == 0
    assert content(tmp_path / "target") == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_source_is_not_gone_on_with(
    hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies half done beside the target is of another model: it is begun anew."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "finish", _interrupted)
        convert(hf_model("llama"), tmp_path / "target")
    convert(hf_model("qwen3"), tmp_path / "target")
    convert(hf_model("qwen3"), tmp_path / "expected")
    assert content(tmp_path / "target") == content(tmp_path / "expected")


def test_a_source_that_changed_is_begun_anew(
    hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(hf_model("llama"), tmp_path / "source")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "finish", _interrupted)
        convert(source, tmp_path / "target")
    file = source / "model.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    convert(source, tmp_path / "target")
    convert(source, tmp_path / "expected")
    assert content(tmp_path / "target") == content(tmp_path / "expected")


def test_a_config_that_changed_is_in_all_files(
    hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for each rank hold it, too, beside weights that have not changed."""
    source = shutil.copytree(hf_model("llama"), tmp_path / "source")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "finish", _interrupted)
        convert(source, tmp_path / "target", to="legacy")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.125}))
    convert(source, tmp_path / "target", to="legacy")
    convert(source, tmp_path / "expected", to="legacy")
    assert content(tmp_path / "target") == content(tmp_path / "expected")


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_machines_share_the_work(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Three at once, started in the wrong order; one of them is killed on the way and started again."""
    source = hf_model("qwen2")
    convert(source, tmp_path / "expected")
    processes = [start(source, tmp_path / "target", node_rank, 3) for node_rank in (2, 1, 0)]
    journal = engine.journal_of(tmp_path / ".target.unfinished", 1)
    until = time.monotonic() + 60
    while not journal.is_file() and time.monotonic() < until:
        time.sleep(0.01)
    processes[1].kill()
    assert processes[1].wait() == -signal.SIGKILL, "it had work left"
    processes[1] = start(source, tmp_path / "target", 1, 3)
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert content(tmp_path / "target") == content(tmp_path / "expected")
