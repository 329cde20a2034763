"""Hugging Face's Trainer in a process of its own, a stretch of steps at a time."""

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from swift_mega.methods.config import PretrainConfig
from tests.bench.inputs import STRETCH_STEPS


def serve(ours: Connection, config: PretrainConfig, samples: Path) -> None:
    """Train as `config` says.

    Waits for the word that `samples` is there and sends the number of weights that are decayed; then trains a
    stretch at every further word and sends the ends of its steps (seconds), their losses and gradient norms.
    """
    ours.recv()
    hand_over = HandOver(ours)
    trainer = make_trainer(config, torch.load(samples), hand_over)
    optimizer = trainer.create_optimizer()
    decayed = sum(p.numel() for group in optimizer.param_groups if group["weight_decay"] for p in group["params"])
    ours.send(decayed)
    trainer.train()


def make_trainer(config: PretrainConfig, samples: list[dict[str, torch.Tensor]], callback: TrainerCallback) -> Trainer:
    """The Trainer with its defaults where `config` says nothing."""
    train, adamw = config.train, config.optimizer
    arguments = TrainingArguments(
        output_dir=config.output + "-hf",
        use_cpu=True,
        max_steps=train.steps,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.global_batch_size // train.micro_batch_size,
        learning_rate=adamw.lr,
        weight_decay=adamw.weight_decay,
        adam_beta1=adamw.adam_beta1,
        adam_beta2=adamw.adam_beta2,
        adam_epsilon=adamw.adam_eps,
        max_grad_norm=adamw.clip_grad,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,  # or `shift_labels` is
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    transformers.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    trainer = Trainer(model, arguments, train_dataset=[aligned(sample) for sample in samples], callbacks=[callback])
    trainer.remove_callback(PrinterCallback)
    return trainer


def aligned(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A sample under transformers' names; `shift_labels` says that the labels are the next tokens already."""
    tokens, labels = sample["tokens"][0], sample["labels"][0]
    return {"input_ids": tokens, "labels": tokens, "shift_labels": labels}


class HandOver(TrainerCallback):
    """Reports each stretch and waits for the word to go on. `on_log` is the last that a step calls."""

    def __init__(self, ours: Connection) -> None:
        self.ours = ours
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ours.recv()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return  # the summary at the end
        self.losses.append(logs["loss"])
        self.norms.append(logs["grad_norm"])
        self.ends.append(time.perf_counter())
        if len(self.ends) == STRETCH_STEPS:
            self.ours.send((self.ends, self.losses, self.norms))
            self.ends, self.losses, self.norms = [], [], []
            if state.global_step < state.max_steps:
                self.ours.recv()
