"""A run that was stopped goes on as if it had not been, also in its second epoch, and past a broken checkpoint."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_bridge.methods import output
from hf_bridge.methods.config import TuneConfig
from hf_bridge.methods.pretrain import pretrain
from hf_bridge.methods.rlhf.config import RlhfConfig
from hf_bridge.methods.sft import sft
from swift_mega.base.errors import UserError
from tests.hf_bridge.methods.runs import Ground, series


class Interrupted(TrainerCallback):
    """A person who stops the run in a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def config_of(ground: Ground, output: Path, **train: Any) -> TuneConfig:
    data = {"val_share": 0.1}
    return ground.config(str(output), tuning={"dropout": 0.2}, data=data, train={"save_steps": 2, **train})


def test_an_interrupted_run_ends_as_one_that_was_not(
    ground: Ground, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = sft(config_of(ground, tmp_path / "whole"))
    assert whole.step == 8

    config = config_of(ground, tmp_path / "parts")
    stopped = sft(config, [Interrupted(7)])
    assert (stopped.step, stopped.stop_reason) == (7, "received SIGTERM")
    assert stopped.folder.name == "checkpoint-7"
    with (stopped.folder / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    assert len(series(config)) == 7
    stopped = sft(config_of(ground, tmp_path / "parts", stop_after_steps=1))
    assert stopped.step == 7
    said = capfd.readouterr().out
    assert "checkpoint-7 cannot be used, optimizer.pt has 100 of" in said and "going on from checkpoint-6" in said
    assert "train.stop_after_steps null → 1" in said
    outcome = sft(config)
    assert (outcome.step, outcome.stop_reason) == (8, "")

    assert series(config) == series(config_of(ground, tmp_path / "whole"))
    assert series(config, "lr") == series(config_of(ground, tmp_path / "whole"), "lr")
    files = [load_file(one.folder / "adapter_model.safetensors") for one in (whole, outcome)]
    assert all(files[0][name].equal(files[1][name]) for name in files[0])
    assert sft(config) == outcome
    assert "is finished: it has all 8 steps" in capfd.readouterr().out


@pytest.fixture(scope="module")
def finished(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    sft(ground.config(str(folder), train={"max_steps": 1}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuner": "dora"}, r"holds another run \(tuner: 'lora' there, 'dora' here\)"),
        ({"tuning": {"rank": 5}}, r"tuning.rank: 4 there, 5 here"),
        ({"text": {"template": "chatml"}}, "text.template: 'plain' there"),
        ({"train": {"resume": "never"}}, "already holds a run, and train.resume is `never`"),
        ({"train": {"gradient_accumulation_steps": 5}}, "trained with 6 examples a step, and this start has 10"),
        ({"train": {"resume": "nowhere"}}, None),
    ],
)
def test_another_run_is_refused(changes: dict[str, Any], message: str | None, ground: Ground, finished: Path) -> None:
    config = ground.config(str(finished), **{**changes, "train": {"max_steps": 1, **changes.get("train", {})}})
    if message is None:
        assert sft(config).step == 1, "its own checkpoints win over a path elsewhere"
        return
    with pytest.raises(UserError, match=message):
        sft(config)


def test_a_run_of_one_step_trains(ground: Ground, finished: Path) -> None:
    weights = load_file(finished / "model" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    assert series(ground.config(str(finished)), "lr") == [1e-3], "a quarter of one step is none to warm up in"


def test_another_method_or_other_data_is_refused(ground: Ground, finished: Path) -> None:
    with pytest.raises(UserError, match="`swift-mega bridge sft`, not `swift-mega bridge pretrain`"):
        pretrain(ground.config(str(finished)))
    file = ground.folder / "chat.jsonl"
    text = file.read_text()
    file.write_text(text.replace("ab", "abc", 1))
    try:
        with pytest.raises(UserError, match="dataset holds other data than the run"):
            sft(ground.config(str(finished)))
    finally:
        file.write_text(text)


def test_methods_of_rlhf_are_named_as_one_types_them(tmp_path: Path) -> None:
    config = RlhfConfig(model="m", output=str(tmp_path), method="dpo")
    assert output.run_folder(config, "dpo").kind == "swift-mega bridge rlhf --method dpo"


def test_without_a_good_checkpoint_nothing_is_guessed(ground: Ground, tmp_path: Path) -> None:
    config = ground.config(str(tmp_path / "out"), train={"max_steps": 1})
    sft(config)
    (tmp_path / "out" / "checkpoints" / "checkpoint-1" / "complete.json").unlink()
    with pytest.raises(UserError, match="checkpoint-1 cannot be used, it was not written to its end"):
        sft(config)
