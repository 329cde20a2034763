"""What distributed model tests run on every rank (see tests/support/distributed.py)."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from converters import checkpoint
from converters.config_table import MegatronArguments
from converters.family import Family, family_of, registry
from swift_mega.model.build import build_model
from swift_mega.model.config import ModelConfig
from swift_mega.model.gpt import GPTModel
from swift_mega.model.logits import megatron_logits
from swift_mega.model.weights import load_hf, save_hf
from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig
from swift_mega.train.checkpoint import needed_bytes
from swift_mega.train.config import TrainConfig


def loaded(
    folder: Path, layout: dict[str, Any], model: dict[str, Any] | None = None, train: dict[str, Any] | None = None
) -> list[Any]:
    """The model of `folder` on the current world, in fp32 unless `model` says otherwise."""
    parallel = ParallelConfig(**layout)
    groups.initialize(parallel, seed=1)
    options = ModelConfig(**{"path": str(folder), "precision": "fp32", **(model or {})})
    chunks = build_model(
        checkpoint.read_config(folder), options, parallel, TrainConfig(steps=1, **(train or {})), sequence_length=48
    )
    load_hf(chunks, folder, without_mtp=options.without_mtp)
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


def checkpoint_bytes(folder: Path, layout: dict[str, Any]) -> int:
    """What a checkpoint is reckoned to take."""
    return needed_bytes(loaded(folder, layout))


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


def logits_with_arguments(folder: Path, tokens: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Logits of the model with other Megatron arguments than its config.json means."""
    right = Family.megatron_arguments

    def wrong(self: Family, config: dict[str, Any]) -> MegatronArguments:
        return dataclasses.replace(right(self, config), **arguments)

    with mock.patch.object(Family, "megatron_arguments", wrong):
        return logits(folder, {}, tokens)


def token_losses(
    folder: Path, layout: dict[str, Any], tokens: Tensor, train: dict[str, Any] | None = None, **model: Any
) -> tuple[Tensor, Tensor]:
    """Loss of every token predicting the next, [b, s], and the gradient of the embedding of this rank; no pipeline."""
    (chunk,) = loaded(folder, layout, model, train)
    positions = torch.arange(tokens.size(1)).unsqueeze(0)
    losses = chunk(tokens, positions, None, labels=tokens.roll(-1, dims=1))
    losses.mean().backward()
    weight = next(param for name, param in chunk.named_parameters() if name.endswith("word_embeddings.weight"))
    assert weight.grad is not None
    return losses.detach(), weight.grad.detach()


def attention_dropout() -> Tensor:
    """Attention with dropout on equal inputs on all ranks."""
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from swift_mega.model.attention import SDPAAttention

    groups.initialize(ParallelConfig(tensor_model_parallel_size=2), seed=1)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=32,
        num_attention_heads=4,
        attention_dropout=0.5,
        tensor_model_parallel_size=2,
        cuda_graph_scope=[],
    )
    attention = SDPAAttention(config=config, layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self")
    ones: Tensor = attention(*(torch.ones(16, 1, 2, 8) for _ in range(3)), None)
    return ones


def token_losses_unmasked(folder: Path, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As `token_losses`, with a model that takes its padding for words."""
    real_columns = GPTModel.real_columns
    GPTModel.real_columns = lambda self: self.vocab_size  # type: ignore[method-assign]
    try:
        return token_losses(folder, {}, tokens)
    finally:
        GPTModel.real_columns = real_columns  # type: ignore[method-assign]


def inverse_frequencies(folder: Path) -> Tensor:
    """Of the rotary embedding."""
    found: Tensor = loaded(folder, {})[0].rotary_pos_emb.inv_freq
    return found


def marked_norms(folder: Path, layout: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Names of the norm weights marked for sequence parallelism, and of all norm weights."""
    norms = {name: param for name, param in loaded(folder, layout)[0].named_parameters() if "norm" in name}
    return [name for name, param in norms.items() if getattr(param, "sequence_parallel", False)], list(norms)


def logits_without_rule(folder: Path, key: str) -> None:
    """Load through a view that has forgotten a tensor."""
    from converters.view import MegatronView

    account = MegatronView.__init__

    def forget(self: MegatronView, *args: Any) -> None:
        account(self, *args)
        del self.tensors[key]

    with mock.patch.object(MegatronView, "__init__", forget):
        loaded(folder, {})


def save_half(folder: Path, target: Path) -> None:
    """Save a two-stage model of which the second stage says that it is only a replica."""
    from swift_mega.model import weights

    chunks = loaded(folder, {"pipeline_model_parallel_size": 2})
    first_stage = torch.distributed.get_rank() == 0
    with mock.patch.object(weights, "is_main_replica", lambda replica: first_stage):
        save_hf(chunks, target, folder)


def failure_of_first_rank() -> str:
    """What each rank sees of a UserError on rank 0."""
    from swift_mega.base.errors import UserError
    from swift_mega.parallel.agree import on_main

    groups.initialize(ParallelConfig(), seed=1)

    def fail() -> None:
        raise UserError("rank 0 could not")

    try:
        on_main(fail)
    except UserError as error:
        return str(error)
    return "nothing"


def save_interrupted(folder: Path, target: Path) -> None:
    """A save that ends between writing and finishing."""
    from swift_mega.model import weights

    chunks = loaded(folder, {})
    with mock.patch.object(weights, "_finish", side_effect=RuntimeError("planted")):
        save_hf(chunks, target, folder)


def random_weights(folder: Path, layout: dict[str, Any], target: Path, seed: int = 1) -> str:
    """Digest of fresh weights of the architecture of `folder`, exported."""
    parallel = ParallelConfig(**layout)
    groups.initialize(parallel, seed=7)
    options = ModelConfig(path=str(folder), weights="random", precision="fp32")
    config = checkpoint.read_config(folder)
    chunks = build_model(config, options, parallel, TrainConfig(steps=1, seed=seed), sequence_length=48)
    save_hf(chunks, target, folder)
    return digest(target)


class NoUpdate:
    """Stands for optimizer and scheduler of a step that is only to compute gradients."""

    def __init__(self) -> None:
        self.param_groups = [{"lr": 0.0}]

    def zero_grad(self) -> None: ...

    def step(self, increment: int = 0) -> tuple[bool, float, None]:
        return True, 0.0, None


def gradients(folder: Path, layout: dict[str, Any], tokens: Tensor, target: Path, **planted: Any) -> None:
    """Write the gradients of one training step under the names of the weights that they belong to.

    `planted` are attributes of megatron's config, changed after the model is built.
    """
    from megatron.core.distributed import finalize_model_grads

    from swift_mega.methods.pretrain import Pretrain
    from swift_mega.train.optimizer import wrap_data_parallel
    from swift_mega.train.step import Stepper

    chunks = wrap_data_parallel(loaded(folder, layout), ParallelConfig(**layout))
    # Every data-parallel rank is to have all gradients, not only those of the weights that it would update.
    chunks[0].config.finalize_model_grads_func = lambda *args, **kwargs: finalize_model_grads(
        *args, **{**kwargs, "force_all_reduce": True}
    )
    for name, value in planted.items():
        setattr(chunks[0].config, name, value)
    rows, length = tokens.shape
    stepper = Stepper(chunks, Pretrain(), micro_batch_size=1, sequence_length=length, num_microbatches=rows)
    nothing: Any = NoUpdate()
    positions = torch.arange(length).unsqueeze(0)
    batches = (
        {"tokens": row, "labels": row.roll(-1, dims=1), "position_ids": positions, "loss_mask": torch.ones(row.shape)}
        for row in torch.split(tokens, 1)
    )
    stepper.train(batches, nothing, nothing)
    with torch.no_grad():
        for chunk in chunks:
            for param in chunk.parameters():
                param.copy_(param.main_grad)
    save_hf(chunks, target, folder)
