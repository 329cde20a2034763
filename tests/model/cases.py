"""What distributed model tests run on every rank (see tests/support/distributed.py)."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters import checkpoint
from converters.family import Family, family_of, registry
from swift_mega.model.build import build_model
from swift_mega.model.config import ModelConfig
from swift_mega.model.logits import megatron_logits
from swift_mega.model.weights import load_hf, save_hf
from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig
from swift_mega.train.config import TrainConfig


def loaded(
    folder: Path, layout: dict[str, Any], model: dict[str, Any] | None = None, train: dict[str, Any] | None = None
) -> list[Any]:
    """The model of `folder` on the current world, in fp32 unless `model` says otherwise."""
    parallel = ParallelConfig(**layout)
    groups.initialize(parallel, seed=1)
    options = ModelConfig(**{"path": str(folder), "precision": "fp32", **(model or {})})
    chunks = build_model(
        checkpoint.read_config(folder), options, parallel, TrainConfig(steps=1, **(train or {})), sequence_length=16
    )
    load_hf(chunks, folder)
    return chunks


def logits(folder: Path, layout: dict[str, Any], tokens: Tensor, **model: Any) -> Tensor:
    """The model's logits for `tokens`."""
    return megatron_logits(loaded(folder, layout, model), tokens)


def round_trip(folder: Path, layout: dict[str, Any], target: Path, **model: Any) -> str:
    """Digest of the weights after HF → Megatron → HF."""
    chunks = loaded(folder, layout, model)
    save_hf(chunks, target, folder)
    return digest(target)


def digest(folder: Path) -> str:
    """Of the bytes of the weights file."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def logits_and_round_trip(folder: Path, layout: dict[str, Any], tokens: Tensor, target: Path) -> tuple[Tensor, str]:
    """Both with one build of the model."""
    chunks = loaded(folder, layout)
    found = megatron_logits(chunks, tokens)
    save_hf(chunks, target, folder)
    return found, digest(target)


def logits_with_fault(folder: Path, layout: dict[str, Any], tokens: Tensor, key: str, order: list[int]) -> Tensor:
    """Logits where the family's rule for `key` takes its sources in another order."""
    config = checkpoint.read_config(folder)
    right = family_of(config)
    wrong = dataclasses.replace(
        right,
        rules=tuple(
            dataclasses.replace(rule, sources=tuple(rule.sources[i] for i in order)) if rule.megatron == key else rule
            for rule in right.rules
        ),
    )
    families: dict[str, Family] = registry()
    families[right.architectures[0]] = wrong
    try:
        return logits(folder, layout, tokens)
    finally:
        families[right.architectures[0]] = right


def token_losses(folder: Path, layout: dict[str, Any], tokens: Tensor, **model: Any) -> tuple[Tensor, Tensor]:
    """Loss of every token predicting the next, [b, s], and the gradient of the embedding of this rank; no pipeline."""
    (chunk,) = loaded(folder, layout, model)
    positions = torch.arange(tokens.size(1)).unsqueeze(0)
    losses = chunk(tokens, positions, None, labels=tokens.roll(-1, dims=1))
    losses.mean().backward()
    weight = next(param for name, param in chunk.named_parameters() if name.endswith("word_embeddings.weight"))
    assert weight.grad is not None
    return losses.detach(), weight.grad.detach()
