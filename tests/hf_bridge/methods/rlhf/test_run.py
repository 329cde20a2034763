"""Whole runs: what is written, what is resumed, what the command line refuses."""

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from hf_bridge.data.config import RowsConfig
from hf_bridge.methods.config import TrainingConfig
from hf_bridge.methods.rlhf.config import ReferenceConfig, RewardsConfig, RlhfConfig, SamplingConfig
from hf_bridge.methods.rlhf.methods import rlhf
from hf_bridge.models.load import load_model
from hf_bridge.templates.config import TemplateConfig
from swift_mega.base.metrics import read
from tests.hf_bridge.methods.rlhf.conftest import ANSWERS, WORSE
from tests.support import cli


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pairs, with a solution."""
    file = tmp_path / "pairs.jsonl"
    with file.open("w") as lines:
        for n in range(12):
            asked = {"role": "user", "content": f"How are you? {n}"}
            answer = {"role": "assistant", "content": ANSWERS[n % 4]}
            row = {"messages": [asked, answer], "rejected_response": WORSE[n % 4], "solution": str(n)}
            lines.write(json.dumps(row) + "\n")
    return file


def config(method: str, model: Path, file: Path, folder: Path, steps: int = 2, **sections: Any) -> RlhfConfig:
    train = TrainingConfig(
        max_steps=steps,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        learning_rate=1e-2,
        tensorboard=False,
        save_steps=1,
    )
    return RlhfConfig(
        model=str(model),
        output=str(folder),
        method=method,  # type: ignore[arg-type]
        text=TemplateConfig(template="chatml"),
        train=sections.pop("train", train),
        data=RowsConfig(
            dataset=[str(file)], cache_dir=str(folder.parent / "cache"), workers=1, **sections.pop("data", {})
        ),
        **sections,
    )


def test_dpo_with_held_out_pairs(chat_model: Path, data: Path, tmp_path: Path) -> None:
    before = ReferenceConfig(precompute_ref=True)
    outcome = rlhf(config("dpo", chat_model, data, tmp_path / "run", reference=before, data={"val_share": 0.25}))
    lines = read(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval/loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and held_out[0]["eval/loss"] == pytest.approx(
        math.log(2), abs=1e-6
    )
    assert held_out[-1]["eval/loss"] < math.log(2) and held_out[-1]["eval/rewards/margins"] > 0
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen"} <= lines[-2].keys() | lines[
        2
    ].keys()
    assert (tmp_path / "run" / "rewards.png").stat().st_size > 10_000 and (tmp_path / "run" / "loss.png").is_file()
    tuned = peft.PeftModel.from_pretrained(load_model(str(chat_model)).model, str(outcome.folder))
    assert set(tuned.peft_config) == {"default"} and not (outcome.folder / "ref").exists()


def test_a_ppo_run_goes_on_where_it_was_stopped(chat_model: Path, data: Path, tmp_path: Path) -> None:
    """A rollout is four steps: stopped behind one, the run does to the last bit what it would have done."""
    rewards = RewardsConfig(rewards=["accuracy", "repetition:words=1"])
    sampling = SamplingConfig(max_completion_length=4)

    def made(folder: str, stop: int | None = None) -> RlhfConfig:
        found = config("ppo", chat_model, data, tmp_path / folder, steps=8, reward=rewards, sampling=sampling)
        found.train.stop_after_steps = stop
        found.train.save_steps = 4
        found.data.keep_columns = ["solution"]
        return found

    whole = rlhf(made("whole"))
    stopped = rlhf(made("parts", 4))
    assert stopped.stop_reason and (stopped.folder / "value.safetensors").is_file()
    resumed = rlhf(made("parts"))
    losses = [[line["loss"] for line in read(tmp_path / folder) if "loss" in line] for folder in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    for name in ("value.safetensors", "adapter_model.safetensors"):
        assert (whole.folder / name).read_bytes() == (resumed.folder / name).read_bytes()


def test_a_reward_model_is_made_and_used(chat_model: Path, data: Path, tmp_path: Path) -> None:
    judge = rlhf(config("rm", chat_model, data, tmp_path / "rm"))
    saved = json.loads((judge.folder / "adapter_config.json").read_text())
    assert saved["task_type"] == "SEQ_CLS"
    used = config("grpo", chat_model, data, tmp_path / "grpo", reward=RewardsConfig(reward_model=str(judge.folder)))
    used.sampling = SamplingConfig(max_completion_length=4, num_generations=2)
    used.tuner = "full"
    outcome = rlhf(used)
    scores = [line["reward"] for line in read(tmp_path / "grpo") if "reward" in line]
    assert len(scores) == 2 and any(scores)
    assert all(torch.isfinite(p).all() for p in load_model(str(outcome.folder)).model.parameters())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "kto", "--gamma", "1"], "`--objective.gamma` is given, and `--method kto` does not read it"),
        (["--method", "dpo", "--loss-type", "hing"], "did you mean `hinge`?"),
        (["--method", "gkd"], "needs `--objective.teacher`"),
        (["--method", "grpo"], "needs `--reward.rewards` or `--reward.reward_model`"),
        (["--method", "dbo"], "dpo, ipo, cpo"),
    ],
)
def test_the_command_line_refuses_before_anything_is_read(options: list[str], told: str, tmp_path: Path) -> None:
    ended = cli.in_process(["bridge", "rlhf", "--model", "no/model", "--output", str(tmp_path / "o"), *options])
    assert ended.code == 2 and told in ended.out + ended.err
    assert not (tmp_path / "o").exists()


def test_a_dry_run_shows_the_plan(chat_model: Path, data: Path, tmp_path: Path) -> None:
    options = [
        "--method",
        "dpo",
        "--dataset",
        str(data),
        "--template",
        "chatml",
        "--data.cache_dir",
        str(tmp_path / "c"),
    ]
    ended = cli.in_process(
        ["bridge", "rlhf", "--dry-run", "--model", str(chat_model), "--output", str(tmp_path / "o"), *options]
    )
    assert ended.code == 0 and "dataset: 12" in ended.out
    assert not (tmp_path / "o").exists()
