"""A run on two processes is the run on one: the same losses, and the same end after an interruption."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_bridge.methods.config import TuneConfig
from hf_bridge.methods.sft import sft
from tests.hf_bridge.methods.runs import Ground, series
from tests.support.distributed import Workers


def tuned(configs: list[TuneConfig]) -> list[int]:
    """On every rank, several starts; the step of each."""
    torch.set_num_threads(1)
    return [sft(config).step for config in configs]


def config_of(ground: Ground, output: Path, **train: Any) -> TuneConfig:
    return ground.config(str(output), data={"val_share": 0.1}, train={"save_steps": 3, **train})


@pytest.mark.slow
def test_two_processes_are_one(ground: Ground, distributed: Workers, tmp_path: Path) -> None:
    one = config_of(ground, tmp_path / "one", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    two = config_of(ground, tmp_path / "two", **split)
    parts = config_of(ground, tmp_path / "parts", **split)
    first = config_of(ground, tmp_path / "parts", **split, stop_after_steps=7)
    steps = sft(one).step
    assert steps == 10
    assert distributed(tuned, 2, [two, first, parts]) == [[10, 7, 10]] * 2
    assert series(two) == pytest.approx(series(one), rel=1e-6)
    assert series(two, "grad_norm") == pytest.approx(series(one, "grad_norm"), rel=1e-5)
    assert series(two, "eval/loss") == pytest.approx(series(one, "eval/loss"), rel=1e-6)
    assert series(parts) == series(two), "resumed in its second epoch, to the last bit"
    weights = [load_file(tmp_path / run / "model" / "adapter_model.safetensors") for run in ("two", "parts")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    shutil.rmtree(tmp_path / "two")
