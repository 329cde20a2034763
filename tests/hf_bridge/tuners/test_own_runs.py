"""Runs of `bridge sft` with our tuners: one that was stopped ends as one that was not."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_bridge.methods.sft import sft
from tests.hf_bridge.methods import runs

NONE = {"rank": None, "alpha": None, "dropout": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "restuning-bypass": {"bottleneck": 4},
    "scedit": {"bottleneck": 4},
    "llamapro": {"num_new_blocks": 2},
    "lisa": {"activated_layers": 1, "step_interval": 3},
    "galore": {"rank": 4, "update_interval": 3},
    "q-galore": {"rank": 4, "update_interval": 3},
    "longlora": {"r": 4},
    "lora+neftune": {},
    "lora+llamapro": {"num_new_blocks": 2},
}


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> runs.Ground:
    return runs.ground(tmp_path_factory.mktemp("tuning"))


@pytest.mark.slow
@pytest.mark.parametrize("tuner", OPTIONS)
def test_a_stopped_run_ends_as_one_that_was_not(ground: runs.Ground, tmp_path: Path, tuner: str) -> None:
    def config(output: str, **train: Any) -> Any:
        tuning = {**NONE, "tuner_options": OPTIONS[tuner]}
        given = {"gradient_checkpointing": True, **train}
        return ground.config(str(tmp_path / output), tuner=tuner, tuning=tuning, train=given)

    whole = sft(config("whole"))
    assert sft(config("parts", stop_after_steps=5)).step == 5
    parts = sft(config("parts"))
    assert whole.step == parts.step == 8
    assert runs.series(config("whole")) == runs.series(config("parts"))
    files = [
        {file.relative_to(one.folder): load_file(file) for file in one.folder.rglob("*.safetensors")}
        for one in (whole, parts)
    ]
    assert files[0] and files[0].keys() == files[1].keys()
    for name, tensors in files[0].items():
        assert all(tensor.equal(files[1][name][key]) for key, tensor in tensors.items())
