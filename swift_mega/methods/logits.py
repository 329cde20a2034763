"""Does Megatron compute with a checkpoint what transformers computes with its Hugging Face model?"""

from pathlib import Path
from typing import NamedTuple

import torch

from converters import checkpoint
from swift_mega.base.config import build
from swift_mega.base.errors import UserError
from swift_mega.data.tokenizer import load_tokenizer
from swift_mega.methods.config import PretrainConfig
from swift_mega.model.build import build_model
from swift_mega.model.logits import megatron_logits, transformers_logits
from swift_mega.model.weights import load_hf
from swift_mega.parallel import groups
from swift_mega.train.checkpoint import load_model


class Compared(NamedTuple):
    """How far apart the logits of one text are."""

    tokens: int
    largest: float
    """Largest absolute difference of any logit."""
    same_token: int
    """Positions at which both find the same token the likeliest."""


def compare_logits(one: Path, other: Path, text: str) -> Compared:
    """Run `text` through Megatron's model and through transformers', both in fp32, in this process.

    Args:
        one: what Megatron loads, a Hugging Face folder or a checkpoint.
        other: a Hugging Face folder, for transformers.

    Raises:
        UserError: `other` is no Hugging Face folder, `text` has no tokens, or megatron-core cannot compute this model.
    """
    if checkpoint.is_megatron(other):
        raise UserError(f"{other} is a Megatron checkpoint.", "--logits needs a Hugging Face folder as B.")
    # Also what transformers' own folder lacks: a checkpoint has its tokenizer beside it.
    tokens = torch.tensor([load_tokenizer(str(checkpoint.hf_folder(one))).encode(text)], dtype=torch.long)
    if not tokens.numel():
        raise UserError(f"the tokenizer in {one} makes no token of {text!r}.", "Give another text.")
    run = {"output": "-", "model": {"path": str(one), "precision": "fp32"}, "data": {}, "train": {"steps": 1}}
    config = build(PretrainConfig, run)
    groups.initialize(config.parallel, seed=1)
    try:
        hf_config = checkpoint.read_config(one)
        chunks = build_model(hf_config, config.model, config.parallel, config.train, tokens.size(1))
        if checkpoint.is_megatron(one):
            load_model(chunks, checkpoint.latest(one))
        else:
            load_hf(chunks, one)
        ours = megatron_logits(chunks, tokens).cpu()
    finally:
        groups.shutdown()
    theirs = transformers_logits(other, tokens)
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    return Compared(tokens.numel(), float((ours - theirs).abs().max()), same)
