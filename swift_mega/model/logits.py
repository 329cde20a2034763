"""Logits of a Megatron model on any layout, whole and on every rank, to compare with transformers'."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import unwrap_model
from torch import Tensor

from converters.stores.files import read_json


def megatron_logits(chunks: list[MegatronModule], tokens: Tensor) -> Tensor:
    """[b, s] token ids, the same on every rank → [b, s, vocabulary] in fp32 on every rank, without padding columns.

    One sequence per micro batch; with virtual pipeline stages b must be a multiple of PP.
    """
    device = torch.cuda.current_device()
    tokens = tokens.to(device)
    rows, length = tokens.shape
    rows_apart = torch.split(tokens, 1)
    with _evaluating(chunks):
        outputs: list[Tensor] = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=[iter(rows_apart) for _ in chunks] if len(chunks) > 1 else iter(rows_apart),
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=rows,
            seq_length=length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    vocabulary = unwrap_model(chunks[0]).real_vocab_size
    logits = torch.cat(outputs)[..., :vocabulary] if outputs else torch.empty(rows, length, vocabulary, device=device)
    logits = logits.contiguous()
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    torch.distributed.broadcast(logits, src=last, group=parallel_state.get_pipeline_model_parallel_group())
    return logits


def transformers_logits(hf_folder: Path, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[b, s] token ids → [b, s, vocabulary] in fp32, by transformers computing in `dtype` where the ids are."""
    from transformers import AutoModelForCausalLM

    config = read_json(hf_folder / "config.json")
    # transformers' SDPA attention leaves out a cap of the scores, without a word, and does not know sinks.
    eager = config.get("attn_logit_softcapping") is not None or config.get("model_type") == "gpt_oss"
    model = AutoModelForCausalLM.from_pretrained(
        hf_folder, dtype=dtype, attn_implementation="eager" if eager else "sdpa"
    )
    model.to(tokens.device).eval()
    with torch.no_grad():
        logits: Tensor = model(tokens).logits.float()
    return logits


def largest_difference(chunks: list[MegatronModule], hf_folder: Path, tokens: Tensor) -> float:
    """The largest absolute difference of any logit between this model and the folder's, on every rank."""
    ours = megatron_logits(chunks, tokens)
    difference = torch.zeros(1, device=ours.device)
    if torch.distributed.get_rank() == 0:
        difference += (ours.cpu() - transformers_logits(hf_folder, tokens.cpu())).abs().max().to(ours.device)
    torch.distributed.broadcast(difference, src=0)
    return float(difference)


def _forward_step(batches: Iterator[Tensor], model: MegatronModule) -> tuple[Tensor, Any]:
    tokens = next(batches)
    positions = torch.arange(tokens.size(1), device=tokens.device).unsqueeze(0)
    return model(tokens, positions, None), partial(_whole_vocabulary)


def _whole_vocabulary(logits: Tensor, non_loss_data: bool = True) -> Tensor:
    """[b, s, vocabulary/TP] → [b, s, vocabulary]."""
    whole: Tensor = gather_from_tensor_model_parallel_region(logits).float()
    return whole


@contextlib.contextmanager
def _evaluating(chunks: list[MegatronModule]) -> Iterator[None]:
    """Without dropout and gradients; afterwards as it was."""
    training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for chunk, was_training in zip(chunks, training, strict=True):
            chunk.train(was_training)
