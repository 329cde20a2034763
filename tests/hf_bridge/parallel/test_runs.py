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
from swift_mega.base.config import merge
from tests.hf_bridge.methods import runs
from tests.hf_bridge.parallel import cases
from tests.support.distributed import Workers

NO_OPTIONS = {"rank": None, "alpha": None, "dropout": None}
"""`full` has none of those."""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication on a CPU")


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> runs.Ground:
    return runs.ground(tmp_path_factory.mktemp("shared"))


def _config(ground: runs.Ground, output: Path, tuner: str, packing: bool = False, **changes: Any) -> TuneConfig:
    """Four rows a step in two batches: of two on one process or on two that share them, or of one on each of two."""
    parallel = changes.get("parallel", {})
    rows = 1 if parallel.get("deepspeed") or parallel.get("fsdp") else 2
    values = {
        "tuner": tuner,
        "tuning": NO_OPTIONS if tuner == "full" else {},
        "data": {"val_dataset": [str(ground.folder / "chat.jsonl")]},
        "length": {"packing": packing, "max_length": 64},
        "train": {
            "max_steps": 4,
            "per_device_train_batch_size": rows,
            "per_device_eval_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": bool(parallel),
        },
    }
    return ground.config(str(output), **merge(values, changes))


class Single:
    """What one process makes of a tuner, made once."""

    def __init__(self, ground: runs.Ground) -> None:
        self.ground = ground
        self.made: dict[tuple[str, bool], TuneConfig] = {}

    def __call__(self, tuner: str, packing: bool = False) -> TuneConfig:
        if (tuner, packing) not in self.made:
            config = _config(self.ground, self.ground.folder / f"single-{tuner}-{packing}", tuner, packing)
            sft(config)
            self.made[tuner, packing] = config
        return self.made[tuner, packing]


@pytest.fixture(scope="session")
def single(ground: runs.Ground) -> Single:
    return Single(ground)


def _same(config: TuneConfig, expected: TuneConfig) -> None:
    """Losses, gradient norms, held-out losses, and the weights in the end."""
    for name in ("loss", "grad_norm", "eval/loss"):
        assert runs.series(config, name) == pytest.approx(runs.series(expected, name), rel=1e-5), name
        assert len(runs.series(config, name)) == (2 if name == "eval/loss" else 4)
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


@pytest.mark.parametrize(("mode", "packing"), [("ulysses", False), ("ring", True)])
def test_two_processes_share_each_sequence(
    mode: str, packing: bool, ground: runs.Ground, single: Single, tmp_path: Path, distributed: Workers
) -> None:
    parallel = {"sequence_parallel_size": 2, "sequence_parallel_mode": mode}
    config = _config(ground, tmp_path / "out", "lora", packing, parallel=parallel)
    assert distributed(cases.tuned, 2, config) == [mode, mode]
    _same(config, single("lora", packing))


@pytest.mark.parametrize("tuner", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_fsdp2(tuner: str, ground: runs.Ground, single: Single, tmp_path: Path, distributed: Workers) -> None:
    config = _config(ground, tmp_path / "out", tuner, parallel={"fsdp": "fsdp2"})
    assert distributed(cases.tuned, 2, config) == ["fsdp2", "fsdp2"]
    _same(config, single(tuner))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("preset", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_zero(
    tuner: str, preset: str, ground: runs.Ground, single: Single, tmp_path: Path, distributed: Workers
) -> None:
    config = _config(ground, tmp_path / "out", tuner, parallel={"deepspeed": preset})
    kind = "zero3" if preset == "zero3" else ""
    assert distributed(cases.tuned, 2, config, timeout_s=200) == [kind, kind]
    _same(config, single(tuner))


RESUMED: dict[str, dict[str, Any]] = {
    "ring": {"sequence_parallel_size": 2, "sequence_parallel_mode": "ring"},
    "fsdp2": {"fsdp": "fsdp2"},
    "zero2": {"deepspeed": "zero2"},
    "zero3": {"deepspeed": "zero3"},
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    name: str, ground: runs.Ground, single: Single, tmp_path: Path, distributed: Workers
) -> None:
    stopped = _config(ground, tmp_path / "out", "lora", parallel=RESUMED[name], train={"stop_after_steps": 2})
    distributed(cases.tuned, 2, stopped, timeout_s=200)
    config = _config(ground, tmp_path / "out", "lora", parallel=RESUMED[name])
    distributed(cases.tuned, 2, config, timeout_s=200)
    _same(config, single("lora"))


def test_what_cannot_be_gathered_is_refused(ground: runs.Ground, tmp_path: Path, distributed: Workers) -> None:
    """An optimizer that a tuner brings was made for weights that are whole."""
    config = _config(ground, tmp_path / "out", "lora+", parallel={"fsdp": "fsdp2"})
    for message in distributed(cases.tuned, 2, config):
        assert "brings an optimizer, or rates, of its own" in message
