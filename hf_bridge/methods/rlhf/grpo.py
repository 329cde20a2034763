"""GRPO (arXiv 2402.03300, eq. 3 and 4) and its kin: TRL's GRPOTrainer on our questions and rewards.

G answers to a question, with rewards r, have the advantage (r − mean r) ÷ std r. With ρ the ratio of a token's
probability to that with which it was drawn: −min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) + β · (π_ref/π − log π_ref/π − 1).
`loss_type` says over which tokens the mean goes: of each answer (grpo), of the batch (bnpo, dapo), or their sum ÷ the
longest length (dr_grpo).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import trl
from accelerate import PartialState
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head

from hf_bridge.data.row import Row
from hf_bridge.methods.method import Setup
from hf_bridge.methods.rewards.reward import Reward
from hf_bridge.methods.rlhf.examples import Prompt, end_tokens
from hf_bridge.methods.rlhf.given import Given, check_enough, trl_arguments
from hf_bridge.methods.rlhf.reference import TUNERS_OFF, reference
from hf_bridge.methods.rlhf.scoring import answer_of, rewards_of, weights_of
from swift_mega.base.errors import UserError


class Questions(torch.utils.data.Dataset[dict[str, Any]]):
    """Questions as TRL wants them: text to show, and what is passed on to rewards."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: Any) -> None:
        self.prompts, self.tokenizer = prompts, tokenizer

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        prompt = self.prompts[number]
        return {"prompt": self.tokenizer.decode(prompt.input_ids), "prompt_ids": prompt.input_ids, "row": prompt.row}


class Trainer(Given, trl.GRPOTrainer):  # type: ignore[misc]
    """See the module."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.prompt_ids = [example["prompt_ids"] for example in inputs]
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return scored

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self.prompt_ids, None, {}

    def end_with(self, tokens: list[int]) -> None:
        """Answers end with one of these tokens."""
        self.eos_token_ids = tokens
        self.generation_config.eos_token_id = tokens
        self.generation_kwargs["eos_token_id"] = tokens

    def compare_with(self, model: Any, beta: float) -> None:
        """Hold the policy to a reference. TRL would load one by the model's name, or copy the tuner."""
        self.beta = beta
        if model is TUNERS_OFF:
            return
        add_fused_lm_head(model, temperature=self.temperature)
        if self.is_deepspeed_enabled:
            model = prepare_deepspeed(model, self.accelerator)
        elif self.is_fsdp_enabled:
            model = prepare_fsdp(model, self.accelerator)
        else:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        self.ref_model = model


def trainer(setup: Setup, train: Any, valid: Any) -> Trainer:
    """The Trainer on questions."""
    _check_batch(setup)
    rewards, ends = rewards_of(setup), end_tokens(setup.encoder, setup.tokenizer)
    beta = setup.config.objective.beta or 0.0
    arguments = trl_arguments(setup, trl.GRPOConfig, beta=0.0, reward_weights=weights_of(setup, rewards))
    check_enough(len(train), arguments.generation_batch_size // arguments.num_generations)
    made = Trainer(
        setup,
        Questions(train, setup.tokenizer),
        None if valid is None else Questions(valid, setup.tokenizer),
        args=arguments,
        reward_funcs=[_scorer(one, setup.tokenizer, ends) for one in rewards],
    )
    made.end_with(ends)
    if beta:
        made.compare_with(reference(setup), beta)
    return made


def _check_batch(setup: Setup) -> None:
    """Refuse a batch that does not hold all answers to each of its questions."""
    answers, told = setup.config.sampling.num_generations or 8, setup.arguments
    rows, processes = told["per_device_train_batch_size"], PartialState().num_processes
    passes = setup.config.grpo.steps_per_generation or told.get("gradient_accumulation_steps", 1)
    if (batch := rows * passes * processes) % answers:
        steps = "steps_per_generation" if setup.config.grpo.steps_per_generation else "gradient_accumulation_steps"
        raise UserError(
            f"`num_generations` is {answers}, and {batch} answers are drawn at once: per_device_train_batch_size "
            f"{rows} × {steps} {passes} × {processes} processes.",
            "That must be a multiple of `num_generations`: change one of them.",
        )


def _scorer(reward: Reward, tokenizer: Any, ends: list[int]) -> Callable[..., list[float | None]]:
    """A reward as TRL calls it."""

    def score(completion_ids: list[list[int]], row: list[Row], **others: Any) -> list[float | None]:
        return reward.score([answer_of(ids, tokenizer, ends) for ids in completion_ids], row)

    score.__name__ = reward.name
    return score
