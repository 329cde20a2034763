"""PPO: what is known of a rollout, the loss on it, what is kept, and that it learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_bridge.data.row import Message, Row
from hf_bridge.methods.rlhf import objective, value
from hf_bridge.methods.rlhf.config import ObjectiveConfig, PpoConfig, RewardsConfig, SamplingConfig
from hf_bridge.methods.rlhf.examples import prompt_ids
from hf_bridge.methods.rlhf.scoring import answer_of
from hf_bridge.models.load import load_model
from hf_bridge.templates.config import TemplateConfig
from swift_mega.base.errors import UserError
from tests.hf_bridge.methods.rlhf.conftest import Made, moved

SAMPLING = SamplingConfig(max_completion_length=5, temperature=0.8)


@pytest.fixture
def rewards(tmp_path: Path) -> RewardsConfig:
    file = tmp_path / "mine.py"
    file.write_text("def letters(answer, row):\n    return len(set(answer.text)) / 10\n")
    return RewardsConfig(rewards=[f"{file}:letters"], missing_end_penalty=0.25)


@pytest.fixture
def made(make: Callable[..., Made], rewards: RewardsConfig, request: Any) -> Made:
    options = {"reward": rewards, "sampling": SAMPLING, "objective": ObjectiveConfig(beta=0.3)}
    return make("ppo", getattr(request, "param", True), ppo=PpoConfig(lam=0.9, discount=0.95), **options)


def bare(model: Any, batch: dict[str, torch.Tensor], row: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Log-probabilities and hidden states of an answer's tokens, and these, from a text without padding."""
    whole = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    count = int(batch["completion_mask"][row].sum())
    with torch.no_grad():
        found = model(input_ids=whole[None], output_hidden_states=True)
    logps = (found.logits[0] / 0.8).log_softmax(-1)[-count - 1 : -1].gather(-1, whole[-count:, None])[:, 0]
    return logps, found.hidden_states[-1][0, -count - 1 : -1], whole[-count:].tolist()


@pytest.mark.parametrize("made", [True, False], ids=["lora", "full"], indirect=True)
def test_a_rollout_and_its_loss(made: Made) -> None:
    policy, trainer = made.setup.model, made.trainer
    compared = load_model(made.setup.config.model).model
    moved(policy, seed=5)  # away from the reference, and the head from 0
    head = getattr(policy, value.NAME).linear
    batch = trainer._rollout(made.batch)
    scaled, advantages = [], []
    for row, prompt in enumerate(made.examples):
        logps, hidden, answer = bare(policy, batch, row)
        count = len(answer)
        start = batch["attention_mask"][row].bool().nonzero()[0]
        assert batch["input_ids"][row, start : start + len(prompt.input_ids)].tolist() == prompt_ids(
            made.setup.encoder, made.rows[row]
        )
        torch.testing.assert_close(batch["logps"][row, :count], logps)
        values = head(hidden)[:, 0].detach()
        torch.testing.assert_close(batch["values"][row, :count], values)
        written = answer_of(answer, made.setup.tokenizer, trainer.ends)
        tokens = -0.3 * (logps - bare(compared, batch, row)[0])
        tokens[-1] += len(set(written.text)) / 10 - 0.25 * (not written.finished)
        gains, returns = objective.advantages(tokens[None], values[None], torch.ones(1, count), 0.95, 0.9)
        torch.testing.assert_close(batch["returns"][row, :count], returns[0], atol=1e-5, rtol=1e-5)
        scaled.append(batch["advantages"][row, :count])
        advantages.append(gains[0])
    flat = torch.cat(advantages)
    torch.testing.assert_close(torch.cat(scaled), (flat - flat.mean()) / flat.std(correction=0), atol=1e-4, rtol=1e-4)

    moved(policy, seed=6)
    new = [bare(policy, batch, row) for row in range(4)]
    mask = batch["completion_mask"]
    logps, values = torch.zeros(mask.shape), torch.zeros(mask.shape)
    for row, (found, hidden, answer) in enumerate(new):
        logps[row, : len(answer)], values[row, : len(answer)] = found, head(hidden)[:, 0].detach()
    wanted = objective.policy_loss(logps, batch["logps"], batch["advantages"], mask, 0.2)
    wanted = wanted + 0.1 * objective.value_loss(values, batch["values"], batch["returns"], mask, 0.2)
    with torch.no_grad():
        assert float(trainer.compute_loss(policy, batch)) == pytest.approx(float(wanted), rel=1e-5, abs=1e-6)


def test_only_the_tuner_and_the_head_are_trained_each_at_its_rate(
    make: Callable[..., Made], rewards: RewardsConfig
) -> None:
    options = {"reward": rewards, "sampling": SAMPLING, "ppo": PpoConfig(value_learning_rate=0.5, num_mini_batches=2)}
    with pytest.raises(UserError, match="answers are drawn to 8 questions at once, and there are 4"):
        make("ppo", **options)
    made = make("ppo", True, {"per_device_train_batch_size": 2}, **options)
    before = {name: tensor.clone() for name, tensor in made.setup.model.state_dict().items()}
    made.trainer.train()
    rates = {
        group["initial_lr"]: len(group["params"]) for group in made.trainer.optimizer.param_groups if group["params"]
    }
    assert rates[0.5] == 2 and len(rates) == 2
    changed = {name for name, tensor in made.setup.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_" in name or name.startswith("value.") for name in changed)
    assert any(name.startswith("value.") for name in changed)


def test_mini_batches_see_each_answer_once_a_pass(make: Callable[..., Made], rewards: RewardsConfig) -> None:
    rows = [Row((Message("user", f"Hello {n}"),)) for n in range(8)]
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    made = make("ppo", True, options, rows=rows, reward=rewards, sampling=SAMPLING, ppo=PpoConfig(num_mini_batches=2))
    loader = list(made.trainer.get_train_dataloader())
    assert [len(batch) for batch in loader] == [8] * 16  # 8 questions a rollout, 4 passes of 4 forward passes
    made.trainer.model.train()
    for number, questions in enumerate(loader):
        made.trainer.done = number
        part = made.trainer._prepare_inputs(questions)
        if number % 4 == 0:
            seen: list[tuple[int, ...]] = []
        seen += [tuple(ids) for ids in part["input_ids"].tolist()]
        if number % 4 == 3:
            assert sorted(seen) == sorted(map(tuple, made.trainer.rollout["input_ids"].tolist()))


@pytest.mark.parametrize("own", [False, True], ids=["head", "model"])
def test_values_are_kept_beside_the_policy_and_come_back(
    make: Callable[..., Made], rewards: RewardsConfig, other_model: Path, tmp_path: Path, own: bool
) -> None:
    options = PpoConfig(value_model=str(other_model) if own else None)
    made = make("ppo", reward=rewards, sampling=SAMPLING, ppo=options)
    moved(made.setup.model)
    made.trainer.save_model(str(tmp_path / "saved"))
    kept = load_file(tmp_path / "saved" / value.FILE)
    held = getattr(made.setup.model, value.NAME)
    assert kept.keys() == held.state_dict().keys() and not any("lora" in name for name in kept)
    adapter = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert adapter and all("lora_" in name for name in adapter)
    moved(made.setup.model)
    made.trainer._load_from_checkpoint(str(tmp_path / "saved"))
    for name, tensor in held.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=0)
    (tmp_path / "saved" / value.FILE).unlink()
    with pytest.raises(UserError, match=r"has no value\.safetensors"):
        made.trainer._load_from_checkpoint(str(tmp_path / "saved"))
    assert hasattr(made.setup.model, value.NAME)


def test_a_reward_model_scores_the_conversation_in_its_own_template(make: Callable[..., Made], tmp_path: Path) -> None:
    judge = make("rm", False)
    judge.trainer.save_model(str(tmp_path / "judge"))
    judge.setup.tokenizer.save_pretrained(tmp_path / "judge")
    reward_model = RewardsConfig(reward_model=str(tmp_path / "judge"))
    made = make("ppo", reward=reward_model, sampling=SAMPLING, text=TemplateConfig(template="chatml"))
    (reward,) = made.trainer.rewards
    answers = [
        answer_of(made.setup.tokenizer("Yes.", add_special_tokens=False)["input_ids"], made.setup.tokenizer, [])
    ] * 4
    row = made.rows[0]
    texts = judge.setup.encoder.encode(Row((row.messages[0], Message("assistant", "Yes.")))).input_ids
    with torch.no_grad():
        wanted = float(judge.setup.model(input_ids=torch.tensor([texts])).logits[0, 0])
    assert reward.score(answers[:2], [row, made.rows[1]])[0] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_it_learns_what_is_rewarded(make: Callable[..., Made], tmp_path: Path) -> None:
    """Small letters, of which a random model writes as many as there are in its vocabulary."""
    file = tmp_path / "mine.py"
    small = "sum(map(str.islower, answer.text)) / max(1, len(answer.text))"
    file.write_text(f"def small(answer, row):\n    return {small}\n")
    options = {"learning_rate": 3e-3, "lr_scheduler_type": "constant", "max_steps": 100}
    made = make(
        *("ppo", False, {**options, "per_device_train_batch_size": 16}),
        rows=[Row((Message("user", f"Hello {n}"),)) for n in range(32)],
        reward=RewardsConfig(rewards=[f"{file}:small"]),
        sampling=SamplingConfig(max_completion_length=6),
        objective=ObjectiveConfig(beta=0.01),
    )
    made.trainer.train()
    scores = [line["reward"] for line in made.trainer.state.log_history if "reward" in line]
    assert len(scores) == 25 and sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.2
