"""The GPU script itself, on a CPU and small: its checks run, compare and report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run.py")
TUNE = Path(__file__).with_name("tune.py")


def test_every_check_runs_on_a_cpu_and_says_what_it_left_out() -> None:
    done = run("--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = {tuple(line.split()[:2]): line for line in done.stdout.splitlines() if "  " in line}
    for check in ("parity_fp32", "parity_bf16", "training", "resume"):
        assert " passed " in outcome[check, "local"], outcome[check, "local"]
        assert " not run " in outcome[check, "transformer_engine"]
    assert "tokens/s" in outcome["training", "local"]
    assert "MFU" not in outcome["training", "local"]


def test_without_a_gpu_nothing_runs_and_the_exit_code_says_so() -> None:
    done = run("--check", "training")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.count("torch sees no CUDA device") == 2


@pytest.mark.slow
def test_lora_and_qlora_run_on_a_cpu() -> None:
    done = run("--device", "cpu", "--tiny", script=TUNE)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("LoRA", "QLoRA"):
        assert any(line.startswith(name) and "tokens/s" in line for line in done.stdout.splitlines()), done.stdout


def test_without_a_gpu_tuning_does_not_run() -> None:
    done = run("--run", "LoRA", script=TUNE)
    assert done.returncode == 2 and "torch sees no CUDA device" in done.stdout


def run(*arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
