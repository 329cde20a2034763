"""sft on several processes: the losses of one process with the same batch, and whole weights or adapters at the end."""

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from hf_bridge.methods.config import TuneConfig
from hf_bridge.methods.sft import sft
from tests.hf_bridge.methods import runs
from tests.hf_bridge.parallel import cases
from tests.support.distributed import Workers

NO_OPTIONS = {"rank": None, "alpha": None, "dropout": None}
"""`full` has none of those."""


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> runs.Ground:
    return runs.ground(tmp_path_factory.mktemp("shared"))


def _config(ground: runs.Ground, output: Path, tuner: str, rows: int, **parallel: Any) -> TuneConfig:
    """A run with four rows a step, `rows` of them in each batch of a process."""
    processes = 2 // parallel.get("sequence_parallel_size", 1) if parallel or rows == 1 else 1
    return ground.config(
        str(output),
        tuner=tuner,
        tuning=NO_OPTIONS if tuner == "full" else {},
        data={"val_dataset": [str(ground.folder / "chat.jsonl")]},
        train={
            "max_steps": 3,
            "per_device_train_batch_size": rows,
            "per_device_eval_batch_size": 4,
            "gradient_accumulation_steps": 4 // rows // processes,
        },
        parallel=parallel,
    )


class Single:
    """What one process makes of a tuner, made once."""

    def __init__(self, ground: runs.Ground) -> None:
        self.ground = ground
        self.made: dict[str, TuneConfig] = {}

    def __call__(self, tuner: str) -> TuneConfig:
        if tuner not in self.made:
            self.made[tuner] = _config(self.ground, self.ground.folder / f"single-{tuner}", tuner, 2)
            sft(self.made[tuner])
        return self.made[tuner]


@pytest.fixture(scope="session")
def single(ground: runs.Ground) -> Single:
    return Single(ground)


def _same(config: TuneConfig, expected: TuneConfig) -> None:
    """Losses, gradient norms, held-out losses, and the weights in the end."""
    for name in ("loss", "grad_norm", "eval/loss"):
        assert runs.series(config, name) == pytest.approx(runs.series(expected, name), rel=1e-5), name
        assert len(runs.series(config, name)) == (2 if name == "eval/loss" else 3)
    found, there = _weights(config), _weights(expected)
    assert found.keys() == there.keys()
    for name, weight in there.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=2e-5, msg=name)


def _weights(config: TuneConfig) -> dict[str, torch.Tensor]:
    """Read as anybody would."""
    folder = Path(config.output) / "model"
    base = transformers.AutoModelForCausalLM.from_pretrained(folder if config.tuner == "full" else config.model)
    read = base if config.tuner == "full" else peft.PeftModel.from_pretrained(base, folder)
    assert transformers.AutoTokenizer.from_pretrained(folder).eos_token
    return dict(read.state_dict())


@pytest.mark.parametrize("mode", ["ulysses", "ring"])
def test_two_processes_share_each_sequence(
    mode: str, ground: runs.Ground, single: Single, tmp_path: Path, distributed: Workers
) -> None:
    config = _config(ground, tmp_path / "out", "lora", 2, sequence_parallel_size=2, sequence_parallel_mode=mode)
    assert distributed(cases.tuned, 2, config) == [mode, mode]
    _same(config, single("lora"))


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_fsdp2(tuner: str, ground: runs.Ground, single: Single, tmp_path: Path, distributed: Workers) -> None:
    config = _config(ground, tmp_path / "out", tuner, 1, fsdp="fsdp2")
    assert distributed(cases.tuned, 2, config) == ["fsdp2", "fsdp2"]
    _same(config, single(tuner))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication on a CPU")
@pytest.mark.parametrize("preset", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_zero(
    tuner: str, preset: str, ground: runs.Ground, single: Single, tmp_path: Path, distributed: Workers
) -> None:
    pytest.importorskip("deepspeed")
    config = _config(ground, tmp_path / "out", tuner, 1, deepspeed=preset)
    kind = "zero3" if preset == "zero3" else ""
    assert distributed(cases.tuned, 2, config, timeout_s=200) == [kind, kind]
    _same(config, single(tuner))
