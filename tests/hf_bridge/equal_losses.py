"""The same rows through both training paths: what `test_equal_losses.py` runs, on ranks and in its own process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_bridge.data.config import RowsConfig
from hf_bridge.data.packing import attention_mask, join, pack
from hf_bridge.data.rows import load_rows
from hf_bridge.templates.encoding import IGNORED, Encoded, encoder
from swift_mega.data.tokenizer import load_tokenizer
from swift_mega.train.step import Batch, Stepper, mean_loss

LENGTH = 512
"""Tokens of a sequence."""


class Losses(NamedTuple):
    """What a path made of the rows.

    Attributes:
        tokens, labels: token ids of all sequences, and what each position is to predict.
        weighted: the sum of weight × cross entropy over all tokens, divided by the sum of the weights.
    """

    tokens: list[list[int]]
    labels: list[list[int]]
    weighted: float


def encoded(folder: Path, data: Path, cache: Path) -> list[Encoded]:
    """The rows of `data` by the tokenizer in `folder`."""
    rows = load_rows(RowsConfig(dataset=[str(data)], shuffle=False, cache_dir=str(cache), workers=1)).train
    encode = encoder(load_tokenizer(str(folder)), template="chatml", loss_scale="react", agent_format="react")
    return [encode.encode(row) for row in rows]


def batches(examples: Sequence[Encoded], packed: bool) -> list[Batch]:
    """One sequence each, as Megatron takes them: labels say the next token, and a mask is True where none is seen."""
    lengths = [len(example) for example in examples]
    parts = [[n] for n in range(len(examples))]
    if packed:
        packing = pack(lengths, LENGTH)
        parts = [packing[n].tolist() for n in range(len(packing))]
    return [_batch([examples[n] for n in part], packed) for part in parts]


def _batch(rows: Sequence[Encoded], packed: bool) -> Batch:
    joined = join([row.input_ids for row in rows], LENGTH, pad=0)
    labels, weights = np.zeros(LENGTH, np.int64), np.zeros(LENGTH, np.float32)
    used = sum(map(len, rows))
    # The last token of a row predicts nothing, least of all the first one of the next row.
    labels[:used] = np.concatenate([[*row.labels[1:], IGNORED] for row in rows])
    weights[:used] = np.concatenate([[*row.loss_weights[1:], 0.0] for row in rows])
    labels[labels == IGNORED] = 0  # megatron looks every label up; its weight is 0
    batch = {"tokens": joined.tokens, "labels": labels, "weights": weights, "position_ids": joined.positions}
    tensors = {name: torch.from_numpy(array)[None] for name, array in batch.items()}
    if packed:
        tensors["mask"] = ~torch.from_numpy(attention_mask(joined.segments))[None, None]
    return tensors


class Weighted:
    """Batch and loss on the Megatron side (a `swift_mega.train.step.Method`)."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        output: Tensor = model(batch["tokens"], batch["position_ids"], batch.get("mask"), labels=batch["labels"])
        return output

    def loss(self, batch: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
        return (output.float() * batch["weights"]).sum(), batch["weights"].sum()


def by_megatron(folder: Path, layout: dict[str, Any], data: Path, cache: Path) -> dict[bool, Losses]:
    """On every rank of a layout, of rows one by one and packed; read and encoded on the rank itself."""
    from tests.model.cases import loaded

    chunks: Any = loaded(folder, layout)
    for chunk in chunks:
        chunk.eval()
    found, examples = {}, encoded(folder, data, cache)
    for packed in (False, True):
        given = batches(examples, packed)
        stepper = Stepper(chunks, Weighted(), micro_batch_size=1, sequence_length=LENGTH, num_microbatches=len(given))
        loss = mean_loss(stepper.evaluate(iter(given)))
        found[packed] = Losses(_lists(given, "tokens"), _lists(given, "labels"), loss)
    return found


def by_transformers(folder: Path, data: Path, cache: Path) -> dict[bool, Losses]:
    """In one process; transformers sees from the positions which rows share a sequence."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found, examples = {}, encoded(folder, data, cache)
    for packed in (False, True):
        given, total, weight = batches(examples, packed), 0.0, 0.0
        for batch in given:
            with torch.no_grad():
                # With a cache it would take the positions for those of one row.
                logits = model(batch["tokens"], position_ids=batch["position_ids"], use_cache=False).logits[0].double()
            losses = torch.nn.functional.cross_entropy(logits, batch["labels"][0], reduction="none")
            total, weight = total + float((losses * batch["weights"][0]).sum()), weight + float(batch["weights"].sum())
        found[packed] = Losses(_lists(given, "tokens"), _lists(given, "labels"), total / weight)
    return found


def _lists(given: Sequence[Batch], name: str) -> list[list[int]]:
    return [batch[name][0].tolist() for batch in given]
