"""The barest loop: one row at a time, torch's AdamW, nothing of transformers but model and schedule."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from hf_bridge.data.rows import load_rows
from hf_bridge.methods.config import TuneConfig
from hf_bridge.templates.encoding import Encoded, encoder
from swift_mega.data.tokenizer import load_tokenizer

ROWS_PER_STEP = 6


def encoded(config: TuneConfig) -> list[Encoded]:
    """The run's rows in their order."""
    text = encoder(load_tokenizer(config.model), config.text.template)
    return [text.encode(row) for row in load_rows(config.data).train]


def batches(config: TuneConfig, epochs: int) -> Iterator[list[Encoded]]:
    """Rows of each step, in the order of a torch generator that is seeded with the epoch."""
    rows = encoded(config)
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.train.seed + epoch)).tolist()
        for first in range(0, len(rows), ROWS_PER_STEP):
            yield [rows[number] for number in order[first : first + ROWS_PER_STEP]]


def loss_sums(model: Any, row: Encoded) -> tuple[torch.Tensor, float]:
    """Σ w·ce and Σ w of a row."""
    logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
    weights = torch.tensor(row.loss_weights[1:])
    return (F.cross_entropy(logits, torch.tensor(row.input_ids[1:]), reduction="none") * weights).sum(), float(
        weights.sum()
    )


def train(config: TuneConfig, model: Any, epochs: int) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of all steps."""
    plain = {id(p) for name, p in model.named_parameters() if "norm" in name or name.endswith("bias")}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if id(p) not in plain], "weight_decay": config.train.weight_decay},
            {"params": [p for p in trained if id(p) in plain], "weight_decay": 0.0},
        ],
        lr=config.train.learning_rate or 0.0,
    )
    steps = list(batches(config, epochs))
    schedule = get_cosine_schedule_with_warmup(optimizer, int(config.train.warmup_ratio * len(steps)), len(steps))
    losses, norms = [], []
    for rows in steps:
        sums = [loss_sums(model, row) for row in rows]
        loss = torch.stack([loss for loss, _ in sums]).sum() / sum(weight for _, weight in sums)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, config.train.max_grad_norm)))
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
    return losses, norms


def held_out_loss(model: Any, rows: list[Encoded]) -> float:
    """Σ w·ce ÷ Σ w."""
    with torch.no_grad():
        sums = [loss_sums(model, row) for row in rows]
    return float(sum(loss for loss, _ in sums)) / sum(weight for _, weight in sums)


def plain_model(config: TuneConfig) -> Any:
    return AutoModelForCausalLM.from_pretrained(config.model)
