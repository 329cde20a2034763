"""PPO for language models (arXiv 1707.06347, 2203.02155): a Trainer of transformers, as TRL has none any more.

A rollout is a batch of questions, an answer to each, drawn from the policy, and what was known of every token then:
its log-probability, its value, and its reward, −β · divergence from the reference with the answer's score at the end.
Generalised advantages of these are trained on for some passes, each in mini-batches. A rollout is as many questions as
`num_mini_batches` optimizer steps take, so batch sizes, schedules, checkpoints and callbacks are those of any Trainer.

N answers of a rollout, B of a batch, P tokens of the longest question, C of the longest answer.
"""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler, disable_dropout_in_model

from hf_bridge.data.row import Row
from hf_bridge.methods.method import Setup
from hf_bridge.methods.rewards.reward import Reward
from hf_bridge.methods.rlhf import objective, value
from hf_bridge.methods.rlhf.collate import left_padded
from hf_bridge.methods.rlhf.examples import Prompt, end_tokens
from hf_bridge.methods.rlhf.given import check_enough, pad_of, trl_arguments
from hf_bridge.methods.rlhf.reference import TUNERS_OFF, reference
from hf_bridge.methods.rlhf.scoring import answer_of, rewards_of, weights_of
from hf_bridge.methods.token_trainer import Quiet, base_of

Batch = dict[str, torch.Tensor]


@dataclass
class PPOConfig(transformers.TrainingArguments):  # type: ignore[misc]
    """Named as TRL named them, where it had them."""

    beta: float = 0.05
    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    discount: float = 1.0
    lam: float = 0.95
    kl_estimator: str = "k1"
    whiten_rewards: bool = False
    missing_end_penalty: float = 0.0
    value_learning_rate: float | None = None
    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    reward_weights: list[float] | None = None

    @property
    def micro_batches(self) -> int:
        """Forward passes of one pass over a rollout."""
        return int(self.num_mini_batches * self.gradient_accumulation_steps)

    @property
    def questions(self) -> int:
        """Of a rollout, all processes together."""
        return int(self.per_device_train_batch_size * self.micro_batches * self.world_size)


class Trainer(Quiet):
    """See the module.

    Args:
        setup: its model has what gives values on it (`value.attach`).
        train: questions; `valid` also, or None.
        rewards: whose weighted sum is an answer's score.
        compared: the reference: a model, or `TUNERS_OFF`.
    """

    def __init__(
        self, setup: Setup, train: Any, valid: Any, args: PPOConfig, rewards: Sequence[Reward], compared: Any
    ) -> None:
        super().__init__(
            model=setup.model,
            args=args,
            data_collator=list,
            train_dataset=train,
            eval_dataset=valid,
            processing_class=setup.tokenizer,
            callbacks=list(setup.callbacks),
            optimizers=(setup.optimizer, None),
        )
        self.model_accepts_loss_kwargs = False  # a mean of each batch, which transformers divides by their number
        self.rewards, self.reward_weights = list(rewards), weights_of(setup, rewards)
        self.pad, self.ends = pad_of(setup.tokenizer), end_tokens(setup.encoder, setup.tokenizer)
        disable_dropout_in_model(self.model)
        self.compared = None
        if compared is not TUNERS_OFF:
            self.compared = self.accelerator.prepare_model(compared, evaluation_mode=True)
        self.micro_batches = args.micro_batches
        self.done = 0  # micro-batches of this run, those before a resumption included
        self.rollout: Batch | None = None
        self.order = torch.empty(0, dtype=torch.int64)
        self.numbers: dict[str, list[float]] = defaultdict(list)

    @property
    def _policy(self) -> Any:
        """Without what spreads it over processes."""
        return self.accelerator.unwrap_model(self.model)

    # Questions: each batch is that of a whole rollout, and comes as often as it is trained on.

    def _get_train_sampler(self, train_dataset: Any = None) -> RepeatSampler:
        return RepeatSampler(
            self.train_dataset,
            mini_repeat_count=1,
            batch_size=self.args.questions,
            repeat_count=self.args.num_ppo_epochs * self.micro_batches,
            seed=self.args.seed,
        )

    def get_train_dataloader(self) -> Any:
        """Of questions, a rollout at a time."""
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self._train_batch_size * self.micro_batches,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _prepare_inputs(self, inputs: Any) -> Batch:
        """Questions → a batch to train on: at first answers are drawn, then rows of the same rollout are taken."""
        if not self.model.training:
            return self._rollout(inputs)
        place = self.done % (self.args.num_ppo_epochs * self.micro_batches)
        if place == 0 or self.rollout is None:
            self.rollout = self._rollout(inputs)
        count = len(self.rollout["input_ids"])
        if place % self.micro_batches == 0 or len(self.order) != count:
            self.order = torch.randperm(count)
        rows = self.order.tensor_split(self.micro_batches)[place % self.micro_batches]
        return {name: tensor[rows.to(tensor.device)] for name, tensor in self.rollout.items()}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As transformers', and counted."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.done += 1
        return loss

    # A rollout.

    def _rollout(self, prompts: Sequence[Prompt]) -> Batch:
        """Draw answers and write down what is known of them; nothing of it has a gradient."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            batch, answers = self._drawn([prompt.input_ids for prompt in prompts])
            size, count = self.args.per_device_train_batch_size, len(prompts)
            parts = [{name: t[n : n + size] for name, t in batch.items()} for n in range(0, count, size)]
            known = [torch.stack(self._known(part)) for part in parts]
            logps, values, compared = torch.cat(known, 1).unbind(0)
        self.model.train(training)
        mask = batch["completion_mask"]
        scores = self._scores(answers, [prompt.row for prompt in prompts], mask)
        apart = objective.divergence(logps, compared, self.args.kl_estimator)
        rewards = objective.token_rewards(scores, self.args.beta * apart, mask)
        if self.args.whiten_rewards:
            rewards = self._whitened(rewards, mask, centred=False) * mask
        advantages, returns = objective.advantages(rewards, values, mask, self.args.discount, self.args.lam)
        self._count({"kl": (apart * mask).sum(1).mean(), "completions/mean_length": mask.sum(1).float().mean()})
        known_now = {"logps": logps, "values": values, "returns": returns}
        return {**batch, **known_now, "advantages": self._whitened(advantages, mask, centred=True) * mask}

    def _drawn(self, prompts: Sequence[Sequence[int]]) -> tuple[Batch, list[list[int]]]:
        """Answers to questions, as a batch of N and as lists of tokens, the one that ended each included."""
        ids, seen = (tensor.to(self.args.device) for tensor in left_padded(prompts, self.pad))
        options = {name: getattr(self.args, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        options |= {"repetition_penalty": self.args.repetition_penalty, "do_sample": True, "pad_token_id": self.pad}
        options |= {"eos_token_id": self.ends or None, "max_new_tokens": self.args.max_completion_length}
        checkpointing = self.args.gradient_checkpointing_kwargs
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, generation_kwargs=options, gradient_checkpointing_kwargs=checkpointing
        ) as model:
            config = transformers.GenerationConfig(**options, disable_compile=True)
            whole = model.generate(input_ids=ids, attention_mask=seen, generation_config=config)
        drawn = whole[:, ids.shape[1] :]
        ended = torch.isin(drawn, torch.tensor(self.ends, device=drawn.device)).int()
        mask = (ended.cumsum(1) - ended == 0).long()
        batch = {"input_ids": whole, "attention_mask": torch.cat([seen, mask], 1), "completion_mask": mask}
        return batch, [row[:length].tolist() for row, length in zip(drawn, mask.sum(1).tolist(), strict=True)]

    def _known(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities under the policy, values, and log-probabilities under the reference: [B, C] each."""
        logps, values, _ = self._forward(self.model, batch)
        if self.compared is not None:
            return logps, values, self._forward(self.compared, batch)[0]
        with self._policy.disable_adapter():
            return logps, values, self._forward(self.model, batch)[0]

    def _scores(self, answers: list[list[int]], rows: list[Row], mask: torch.Tensor) -> torch.Tensor:
        """[N], of whole answers; what no reward can judge counts as 0."""
        written = [answer_of(ids, self.processing_class, self.ends) for ids in answers]
        total = torch.zeros(len(rows), device=mask.device)
        for reward, weight in zip(self.rewards, self.reward_weights, strict=True):
            found = torch.tensor([score or 0.0 for score in reward.score(written, rows)], device=mask.device)
            total += weight * found
            self._count({f"rewards/{reward.name}/mean": found.mean()})
        unfinished = torch.tensor([not answer.finished for answer in written], device=mask.device)
        total -= self.args.missing_end_penalty * unfinished
        self._count({"reward": total.mean(), "completions/clipped_ratio": unfinished.float().mean()})
        return total

    def _whitened(self, values: torch.Tensor, mask: torch.Tensor, centred: bool) -> torch.Tensor:
        """Divided by the standard deviation over all answers of all processes, and with its mean taken off."""
        sums = torch.stack([(values * mask).sum(), (values**2 * mask).sum(), mask.sum().float()])
        total, squares, count = self.accelerator.reduce(sums, "sum")
        mean = total / count
        scaled: torch.Tensor = (values - mean if centred else values) * (squares / count - mean**2 + 1e-8).rsqrt()
        return scaled

    # A step.

    def _forward(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each token of the answers its log-probability, the value before it, and the uncertainty: [B, C]."""
        count, mask = batch["completion_mask"].shape[1], batch["attention_mask"]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": mask}
        base = base_of(model)
        if not any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        kept = {"logits_to_keep": count + 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
        hidden: list[torch.Tensor] = []
        hook = base.get_output_embeddings().register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
        try:
            logits = model(**inputs, **kept, use_cache=False).logits[:, -count - 1 : -1].float()
        finally:
            hook.remove()
        logps = (logits / self.args.temperature).log_softmax(-1)
        chosen = logps.gather(-1, batch["input_ids"][:, -count:, None])[..., 0]
        entropy = -(logps.detach().exp() * logps.detach()).sum(-1)
        found = getattr(self._policy, value.NAME)
        values = found(hidden[-1][:, -count - 1 :], {"input_ids": batch["input_ids"], "attention_mask": mask})
        return chosen, values[:, :-1], entropy

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Loss of the policy + `vf_coef` · loss of the values."""
        args, mask, old = self.args, inputs["completion_mask"], inputs["logps"]
        logps, values, entropy = self._forward(model, inputs)
        policy = objective.policy_loss(logps, old, inputs["advantages"], mask, args.cliprange)
        valued = objective.value_loss(values, inputs["values"], inputs["returns"], mask, args.cliprange_value)
        ratio = (logps.detach() - old).exp()
        self._count(
            {
                "policy_loss": policy,
                "value_loss": valued,
                "entropy": objective.masked_mean(entropy, mask),
                "clip_ratio": objective.masked_mean(((ratio - 1).abs() > args.cliprange).float(), mask),
            }
        )
        loss: torch.Tensor = policy + args.vf_coef * valued
        return loss

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        """The loss on answers that are drawn for it; what counts are the rewards beside it."""
        batch = self._prepare_inputs(inputs)
        with torch.no_grad():
            return self.compute_loss(model, batch).detach(), None, None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As transformers', with what gives values at a rate of its own, also where a tuner brings the optimizer."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        own = list(getattr(self._policy, value.NAME).parameters())
        for group in optimizer.param_groups:
            group["params"] = [one for one in group["params"] if all(one is not other for other in own)]
        rate = self.args.value_learning_rate or self.args.learning_rate
        optimizer.add_param_group({"params": own, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _count(self, numbers: dict[str, torch.Tensor]) -> None:
        prefix = "" if self.model.training else "eval_"
        for name, number in numbers.items():
            self.numbers[prefix + name].append(float(self.accelerator.reduce(number.detach().float(), "mean")))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with the means of what was counted since the last time."""
        held_out = any(name.startswith("eval_") for name in logs)
        for name in [name for name in self.numbers if name.startswith("eval_") == held_out]:
            found = self.numbers.pop(name)
            logs[name] = sum(found) / len(found)
        super().log(logs, start_time)

    # What is kept: the values beside the policy's weights.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        rest, state = (None, None) if state_dict is None else value.split(state_dict)
        with value.apart(self._policy) as own:
            super()._save(output_dir, rest)
            value.save(Path(output_dir or self.args.output_dir), own.state_dict() if state is None else state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with value.apart(self._policy) as own:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            value.load(own, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        with value.apart(self._policy) as own:
            super()._load_best_model()
            value.load(own, Path(str(self.state.best_model_checkpoint)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        # In the middle of a rollout its answers are drawn again, from the policy as it is now.
        self.done = self.state.global_step * self.args.gradient_accumulation_steps


def trainer(setup: Setup, train: Any, valid: Any) -> Trainer:
    """The Trainer on questions."""
    arguments = trl_arguments(setup, PPOConfig)
    check_enough(len(train), arguments.questions)
    rewards, compared = rewards_of(setup), reference(setup)
    value.attach(setup)
    return Trainer(setup, train, valid, arguments, rewards, compared)
