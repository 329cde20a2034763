"""transformers' Trainer with the loss of token prediction: Σ w·ce ÷ Σ w over a whole optimizer step.

The sums go over all examples, gradient accumulation steps and processes, so that a step has one loss and one gradient
however it is cut into batches. Other methods take `Quiet` from here, whose evaluation leaves no trace in what follows.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from hf_bridge.methods.batches import Collator, Sequences
from hf_bridge.methods.method import Setup
from hf_bridge.parallel import sequence
from hf_bridge.templates.encoding import IGNORED
from hf_bridge.tuners.tuned import INDEX, TunedModel
from swift_mega.base.console import progress

Batch = dict[str, torch.Tensor]

MODEL_INPUTS = ("input_ids", "position_ids", "logits_to_keep")
"""Of a batch, what a model is given if it takes it."""


class Quiet(transformers.Trainer):  # type: ignore[misc]
    """What every Trainer of a run is: evaluation leaves no trace in what follows, and a checkpoint has all tuners.

    Attributes:
        tuned: the model with its tuners, set by the run.
    """

    tuned: TunedModel | None = None

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', which leaves the generators of random numbers where it has found them."""
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            return super().evaluate(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """transformers knows of one adapter of PEFT, or of the whole model. A state that was gathered is theirs."""
        with _no_bars():
            if self.tuned is None or state_dict is not None:
                super()._save(output_dir, state_dict)
                return
            folder = Path(output_dir or self.args.output_dir)
            self.tuned.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.tuned is not None and (Path(resume_from_checkpoint) / INDEX).is_file():
            self.tuned.load(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if self.tuned is not None and (Path(best) / INDEX).is_file():
            self.tuned.load(best)
        else:
            super()._load_best_model()


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' bar over shards, in the middle of ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def base_of(model: Any) -> Any:
    """The model of transformers under DDP, PEFT and the like."""
    while isinstance(model, PeftModel) or hasattr(model, "module"):
        model = model.get_base_model() if isinstance(model, PeftModel) else model.module
    return model


def accepted(model: Any) -> list[str]:
    """The inputs that a model takes of `MODEL_INPUTS`."""
    peft_config = getattr(model, "peft_config", {})
    if any(config.is_prompt_learning for config in peft_config.values()):
        return ["input_ids"]  # PEFT puts tokens of its own in front, which moves all positions
    takes = inspect.signature(base_of(model).forward).parameters
    return [name for name in MODEL_INPUTS if name in takes]


def token_losses(model: Any, batch: Mapping[str, torch.Tensor], inputs: list[str]) -> tuple[torch.Tensor, Batch]:
    """Cross entropy of each token that is kept, and what belongs to these tokens.

    Args:
        inputs: entries of the batch that the model takes.

    Returns:
        [B, K] float32, 0 where nothing is trained; `shift_labels`, `loss_weights` and, where the batch has them,
        `channels` at the same K of S places, which are all where the model does not take `logits_to_keep`.
    """
    kept = batch["logits_to_keep"] if "logits_to_keep" in inputs else slice(None)
    names = ("shift_labels", "loss_weights", "channels")
    target = {name: batch[name][:, kept] for name in names if name in batch}
    # With a cache transformers takes positions that start again for one sequence.
    logits = model(**{name: batch[name] for name in inputs}, use_cache=False).logits
    labels = target["shift_labels"]
    logits = logits[:, logits.shape[1] - labels.shape[1] :]  # behind PEFT's virtual tokens
    losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view(labels.shape), target


class TokenTrainer(Quiet):
    """A Trainer on `Sequences`."""

    def __init__(self, setup: Setup, train: Sequences, valid: Sequences | None) -> None:
        tokenizer, channels = setup.tokenizer, train.channels
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.setup = setup
        collator = Collator(0 if pad is None else pad, channels)
        self.share = sequence.join(setup.config.parallel)
        super().__init__(
            model=setup.model,
            args=transformers.TrainingArguments(**setup.arguments),
            data_collator=collator if self.share is None else self.share.collator(collator),
            train_dataset=train,
            eval_dataset=valid,
            processing_class=tokenizer,
            callbacks=list(setup.callbacks),
            optimizers=(setup.optimizer, None),
        )
        self.model_accepts_loss_kwargs = True  # our loss is that of the whole step: it is not divided once more
        self.inputs = accepted(self.model)
        if self.share is not None:
            self.share.attach(self.model)
            self.inputs.append("segments")
        self.channels = channels
        self.channel_sums = torch.zeros(len(channels), 2, device=self.args.device)
        self.new_tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)

    def get_train_dataloader(self) -> Any:
        """As transformers', for those who share rows as well."""
        return self._shared(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As transformers', for those who share rows as well."""
        return self._shared(super().get_eval_dataloader(eval_dataset))

    def _shared(self, loader: Any) -> Any:
        return loader if self.share is None else self.share.loader(loader)

    def _of_all(self, rows: torch.Tensor) -> torch.Tensor:
        """[B, …] of each process → [all, …] in the order of the data, in which the last ones may be there twice."""
        if self.share is None:
            gathered: torch.Tensor = self.accelerator.gather(rows)
            return gathered
        return self.share.gather(rows)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        """Σ w of the step over all processes; tokens are counted on the way."""
        sums = torch.stack([sum_of(batch_samples, "loss_weights"), sum_of(batch_samples, "num_tokens")]).to(device)
        if self.args.world_size > 1:
            sums = self.accelerator.gather(sums[None]).sum(0)
        self.new_tokens += sums[1].long()
        return sums[0]

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | float = 1.0,
    ) -> torch.Tensor:
        """This batch's share of the step's loss, times the processes, over which gradients are averaged."""
        losses, target = token_losses(model, inputs, self.inputs)
        weighted = losses * target["loss_weights"]
        if self.channels:
            self.channel_sums += channel_sums(weighted.detach(), target, len(self.channels)).sum(0)
        share: torch.Tensor = weighted.sum() / num_items_in_batch * self.accelerator.num_processes
        return share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with the tokens that were seen and the loss of each channel."""
        self.state.num_input_tokens_seen += int(self.new_tokens)
        self.new_tokens.zero_()
        if "loss" in logs:
            logs["num_tokens"] = self.state.num_input_tokens_seen
            if self.channels:
                logs |= self._channel_losses(self.accelerator.reduce(self.channel_sums.clone(), "sum"))
                self.channel_sums.zero_()
        super().log(logs, start_time)

    def _channel_losses(self, sums: torch.Tensor, prefix: str = "") -> dict[str, float]:
        named = zip(self.channels, sums.tolist(), strict=True)
        return {f"{prefix}loss/{name}": loss / weight for name, (loss, weight) in named if weight}

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Σ w·ce ÷ Σ w over all that is held out; transformers' is a mean of the batches' means."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        # Of all tokens, and of each channel: Σ w·ce and Σ w.
        sums, left = torch.zeros(1 + len(self.channels), 2, dtype=torch.float64), len(dataloader.dataset)
        with progress(len(dataloader), "evaluate", "batch") as bar:
            for batch in dataloader:
                with torch.no_grad(), self.compute_loss_context_manager():
                    losses, target = token_losses(model, self._prepare_inputs(batch), self.inputs)
                weighted = losses * target["loss_weights"]
                rows = torch.stack([weighted.sum(1), target["loss_weights"].sum(1)], 1)[:, None]
                if self.channels:
                    rows = torch.cat([rows, channel_sums(weighted, target, len(self.channels))], 1)
                # Of the last batch the processes hold some examples twice.
                found = self._of_all(rows)[:left]
                sums += found.double().sum(0).cpu()
                left -= len(found)
                bar.update(1)
        metrics = {f"{metric_key_prefix}_loss": float(sums[0, 0] / sums[0, 1])}
        metrics |= self._channel_losses(sums[1:], f"{metric_key_prefix}_")
        if self.setup.config.train.predict_with_generate:
            metrics |= self._answers(dataloader.dataset, metric_key_prefix)
        return EvalLoopOutput(None, None, metrics, len(dataloader.dataset))

    def _answers(self, valid: Sequences, prefix: str) -> dict[str, float]:
        from hf_bridge.methods.generate import scores

        state = self.accelerator.state
        found = scores(self.model, self.setup.encoder, valid.rows, state.process_index, state.num_processes)
        rouge, exact, count = self.accelerator.reduce(found.to(self.args.device), "sum").tolist()
        return {f"{prefix}_rouge_l": rouge / count, f"{prefix}_exact_match": exact / count}


def sum_of(batches: list[Batch], name: str) -> torch.Tensor:
    """The sum of an entry over batches, float32."""
    return torch.stack([batch[name].sum(dtype=torch.float32) for batch in batches]).sum()


def channel_sums(weighted: torch.Tensor, target: Batch, count: int) -> torch.Tensor:
    """[B, count, 2]: of each sequence, Σ w·ce and Σ w of each channel."""
    of = F.one_hot(target["channels"] + 1, count + 1)[..., 1:].to(weighted.dtype)  # [B, K, count]
    return torch.einsum("bkc,bkv->bcv", of, torch.stack([weighted, target["loss_weights"]], -1))
