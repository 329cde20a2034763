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
from hf_bridge.methods.config import LengthConfig, TuneConfig
from hf_bridge.templates.config import TemplateConfig
from hf_bridge.templates.encoding import IGNORED, Encoded, encoder
from swift_mega.data.tokenizer import load_tokenizer
from swift_mega.train.step import Batch, Stepper, mean_loss

LENGTH = 512
"""Tokens of a sequence."""

TEXT = TemplateConfig(template="chatml", loss_scale="react", agent_format="react")
"""Gives weights other than 0 and 1."""


class Losses(NamedTuple):
    """What a path made of the rows, by sequences and without padding.

    Attributes:
        tokens, labels: token ids, and what each position is to predict; `IGNORED` where nothing.
        weights: of the labels in the loss.
        loss: the sum of weight × cross entropy over all tokens, divided by the sum of the weights.
    """

    tokens: list[list[int]]
    labels: list[list[int]]
    weights: list[list[float]]
    loss: float


def rows_config(data: Path, cache: Path) -> RowsConfig:
    """Where the rows are."""
    return RowsConfig(dataset=[str(data)], shuffle=False, cache_dir=str(cache), workers=1)


def encoded(folder: Path, data: Path, cache: Path) -> list[Encoded]:
    """The rows of `data` by the tokenizer in `folder`."""
    encode = encoder(load_tokenizer(str(folder)), TEXT.template, TEXT.loss_scale, TEXT.agent_format)
    return [encode.encode(row) for row in load_rows(rows_config(data, cache)).train]


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
    batch = {
        "tokens": joined.tokens,
        "labels": np.where(labels == IGNORED, 0, labels),  # megatron looks every label up; the weight of these is 0
        "weights": weights,
        "position_ids": joined.positions,
        "segments": joined.segments,
    }
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
        found[packed] = _losses(given, "tokens", "labels", "weights", loss=mean_loss(stepper.evaluate(iter(given))))
    return found


def by_transformers(folder: Path, data: Path, cache: Path) -> dict[bool, Losses]:
    """In one process, by the parts of `bridge sft`."""
    from transformers import AutoModelForCausalLM

    from hf_bridge.methods.batches import Collator
    from hf_bridge.methods.run import prepared, resolved
    from hf_bridge.methods.sft import SFT
    from hf_bridge.methods.token_trainer import accepted, token_losses

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    for packed in (False, True):
        config = TuneConfig(
            model=str(folder),
            output=str(cache / "run"),
            data=rows_config(data, cache),
            text=TEXT,
            length=LengthConfig(max_length=LENGTH, packing=packed),
        )
        sequences = prepared(resolved(config, SFT), SFT)[1]["dataset"]
        given, total, weight = [Collator(pad=0)([sequences[n]]) for n in range(len(sequences))], 0.0, 0.0
        for batch in given:
            with torch.no_grad():
                losses, target = token_losses(model, batch, accepted(model))
            total += float((losses * target["loss_weights"]).sum())
            weight += float(target["loss_weights"].sum())
        found[packed] = _losses(given, "input_ids", "shift_labels", "loss_weights", loss=total / weight)
    return found


def _losses(given: Sequence[Batch], *names: str, loss: float) -> Losses:
    used = [int((batch["segments"] != 0).sum()) for batch in given]
    tokens, labels, weights = (
        [batch[name][0, :end].tolist() for batch, end in zip(given, used, strict=True)] for name in names
    )
    for own, mine in zip(labels, weights, strict=True):
        own[:] = [label if weight else IGNORED for label, weight in zip(own, mine, strict=True)]
    return Losses(tokens, labels, weights, loss)
