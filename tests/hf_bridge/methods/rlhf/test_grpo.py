"""GRPO: our questions, our rewards, the paper's objective."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_bridge.methods.callbacks import Reason, Report
from hf_bridge.methods.rewards.reward import Answer
from hf_bridge.methods.rlhf.config import GrpoConfig, ObjectiveConfig, RewardsConfig, SamplingConfig
from hf_bridge.methods.rlhf.examples import end_tokens, prompt_ids
from hf_bridge.methods.rlhf.scoring import answer_of
from hf_bridge.models.load import load_model
from swift_mega.base import metrics
from swift_mega.base.errors import UserError
from tests.hf_bridge.methods.rlhf.conftest import Made, moved
from tests.support import tiny_chat

SAMPLING = SamplingConfig(max_completion_length=6, num_generations=2)


@pytest.fixture
def rewards(tmp_path: Path) -> RewardsConfig:
    """Of the letters of an answer, and of a solution that came along."""
    file = tmp_path / "mine.py"
    file.write_text(
        "def letters(answer, row):\n    return len(set(answer.text)) / 10\n"
        "def solution(answer, row):\n    return float(row.extra['solution'])\n"
        "def broken(answer, row):\n    return row.extra['target']\n"
    )
    return RewardsConfig(rewards=[f"{file}:letters", f"{file}:solution"], reward_weights=[1.0, 0.5])


def generated(made: Made) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """Questions of a step, and what is trained on."""
    made.trainer.model.train()
    made.trainer.current_gradient_accumulation_steps = 1
    questions = next(iter(made.trainer.get_train_dataloader()))
    made.trainer._prepare_inputs(questions)
    return questions, made.trainer._buffered_inputs


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_objective(make: Callable[..., Made], rewards: RewardsConfig, lora: bool) -> None:
    objective = ObjectiveConfig(beta=0.04, loss_type=["grpo"])
    options = {"objective": objective, "reward": rewards, "sampling": SAMPLING}
    # Two forward passes of one generation, so that the first moves the policy away from that which has answered.
    made = make("grpo", lora, {"gradient_accumulation_steps": 1}, grpo=GrpoConfig(steps_per_generation=2), **options)
    policy, compared = made.setup.model, load_model(made.setup.config.model).model
    moved(policy, seed=3)  # away from the reference
    _, buffer = generated(made)
    batch = buffer[0]
    old = bare_logps(policy, batch)
    moved(policy)
    new, ref = bare_logps(policy, batch), bare_logps(compared, batch)
    losses = []
    for row, (now, then, other) in enumerate(zip(new, old, ref, strict=True)):
        ratio, advantage = (now - then).exp(), float(batch["advantages"][row])
        clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        # The divergence is corrected by the ratio, as its answers are not the policy's any more (TRL's default).
        kl = ((other - now).exp() - (other - now) - 1) * ratio
        losses.append((0.04 * kl - clipped).mean())
    assert any((ratio - 1).abs().max() > 0.01 for ratio in [(a - b).exp() for a, b in zip(new, old, strict=True)])
    with torch.no_grad():
        found = float(made.trainer.compute_loss(policy, batch))
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6, abs=1e-6)


def bare_logps(model: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Of the tokens of each answer, without padding."""
    found = []
    for row in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, :-1].double().log_softmax(-1)
        found.append(logits[len(prompt) - 1 :].gather(-1, answer[:, None])[:, 0])
    return found


def test_advantages_and_questions(make: Callable[..., Made], rewards: RewardsConfig) -> None:
    made = make("grpo", reward=rewards, sampling=SAMPLING)
    encode, tokenizer = made.setup.encoder, made.setup.tokenizer
    asked: list[list[int]] = []
    generate = made.setup.model.generate

    def spy(**given: Any) -> Any:
        rows = zip(given["input_ids"], given["attention_mask"], strict=True)
        asked.extend(ids[mask.bool()].tolist() for ids, mask in rows)
        return generate(**given)

    made.setup.model.generate = spy
    questions, buffer = generated(made)
    assert asked == [prompt_ids(encode, question["row"]) for question in questions]
    whole = {
        name: torch.cat([part[name] for part in buffer])
        for name in ("completion_ids", "completion_mask", "advantages", "prompt_ids", "prompt_mask")
    }
    groups: dict[str, list[tuple[float, float]]] = {}
    ends = end_tokens(encode, tokenizer)
    solutions = {tuple(prompt_ids(encode, row)): float(row.extra["solution"]) for row in made.rows}
    for row in range(4):
        ids = whole["completion_ids"][row][whole["completion_mask"][row].bool()].tolist()
        prompt = whole["prompt_ids"][row][whole["prompt_mask"][row].bool()].tolist()
        score = len(set(answer_of(ids, tokenizer, ends).text)) / 10 + 0.5 * solutions[tuple(prompt)]
        groups.setdefault(str(prompt), []).append((score, float(whole["advantages"][row])))
    assert [len(group) for group in groups.values()] == [2, 2]
    for group in groups.values():
        scores = torch.tensor([score for score, _ in group])
        wanted = (scores - scores.mean()) / (scores.std() + 1e-4)
        assert [advantage for _, advantage in group] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_two_steps_on_a_cpu(make: Callable[..., Made], rewards: RewardsConfig) -> None:
    made = make("grpo", reward=rewards, sampling=SAMPLING, objective=ObjectiveConfig(beta=0.1))
    before = {name: value.clone() for name, value in made.setup.model.state_dict().items()}
    made.trainer.train()
    log = made.trainer.state.log_history
    assert [line["step"] for line in log[:2]] == [1, 2] and log[0][
        "rewards/mine.py:letters/mean" if False else "reward"
    ] > 0
    changed = [name for name, value in made.setup.model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed and all("lora_" in name for name in changed)


def test_a_function_that_fails_is_told_with_the_row(make: Callable[..., Made], rewards: RewardsConfig) -> None:
    rewards.rewards = [rewards.rewards[0].replace("letters", "broken")]
    rewards.reward_weights = []
    made = make("grpo", reward=rewards, sampling=SAMPLING)
    with pytest.raises(UserError, match=r"failed on the row “How are you\?.*KeyError: 'target' \(mine.py:6\)"):
        made.trainer.train()


def test_a_reward_that_judges_nothing_has_no_number(make: Callable[..., Made], tmp_path: Path) -> None:
    file = tmp_path / "none.py"
    file.write_text("def none(answer, row):\n    return None\n")
    made = make("grpo", reward=RewardsConfig(rewards=[f"{file}:none"]), sampling=SAMPLING, arguments={"max_steps": 1})
    with contextlib.closing(metrics.MetricsWriter(tmp_path)) as writer:
        made.trainer.add_callback(Report(writer, tmp_path, Reason(), 4))
        made.trainer.train()
    line = metrics.read(tmp_path)[-1]
    assert "loss" in line and not any("none" in name for name in line)


def test_weights_for_each_reward(make: Callable[..., Made], rewards: RewardsConfig) -> None:
    rewards.reward_weights = [1.0]
    with pytest.raises(UserError, match="1 `reward_weights` and 2 rewards"):
        make("grpo", reward=rewards, sampling=SAMPLING)


def test_a_batch_holds_all_answers_to_its_questions(make: Callable[..., Made], rewards: RewardsConfig) -> None:
    wanted = r"`num_generations` is 3, and 4 answers are drawn at once: .* 4 × gradient_accumulation_steps 1 × 1 proc"
    with pytest.raises(UserError, match=wanted):
        make("grpo", reward=rewards, sampling=SamplingConfig(num_generations=3))


def test_what_trl_refuses_is_told(make: Callable[..., Made], rewards: RewardsConfig) -> None:
    with pytest.raises(UserError, match=r"TRL refuses: .*2 generations"):
        make("grpo", reward=rewards, sampling=SamplingConfig(num_generations=1))


def test_answers_keep_special_tokens_but_that_which_ends_them() -> None:
    words = tiny_chat.tokenizer()
    ids = words("<tool_call>fine</tool_call><|im_end|>", add_special_tokens=False)["input_ids"]
    end = words.convert_tokens_to_ids("<|im_end|>")
    assert answer_of(ids, words, [end]) == Answer("<tool_call>fine</tool_call>", len(ids), True)
    assert answer_of(ids[:-1], words, [end]) == Answer("<tool_call>fine</tool_call>", len(ids) - 1, False)
