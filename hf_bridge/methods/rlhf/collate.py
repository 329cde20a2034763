"""Examples as the tensors that TRL's Trainers take. B examples, S tokens of the longest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_bridge.methods.rlhf.examples import Judged, Pair, Tokens
from hf_bridge.templates.encoding import IGNORED

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Padded:
    """Rows of one length.

    Attributes:
        input_ids: [B, S] int64.
        attention_mask: [B, S] int64, 0 on padding.
        completion_mask: [B, S] int64, 1 on tokens of the answer.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_mask: torch.Tensor

    @property
    def labels(self) -> torch.Tensor:
        """[B, S] int64, not shifted."""
        return self.input_ids.masked_fill(self.completion_mask == 0, IGNORED)


def padded(texts: Sequence[Tokens], pad: int) -> Padded:
    """Texts with padding behind them."""
    length = max(text.tokens for text in texts)
    ids = np.full((len(texts), length), pad, np.int64)
    seen, answer = np.zeros_like(ids), np.zeros_like(ids)
    for number, text in enumerate(texts):
        ids[number, : text.tokens] = text.input_ids
        seen[number, : text.tokens] = 1
        answer[number, : text.tokens] = text.mask
    return Padded(*map(torch.from_numpy, (ids, seen, answer)))


@dataclass(frozen=True)
class Compared:
    """Pairs for DPO: all chosen answers, then all rejected ones ([2B, S]).

    Attributes:
        reference_free: the reference gives every answer the log-probability 0.
    """

    pad: int
    reference_free: bool = False

    def __call__(self, pairs: Sequence[Any]) -> Batch:
        """`pairs` are examples, or examples with the reference's two log-probabilities."""
        plain = [pair if isinstance(pair, Pair) else pair[0] for pair in pairs]
        batch = dict(vars(padded([pair.chosen for pair in plain] + [pair.rejected for pair in plain], self.pad)))
        if self.reference_free:
            batch |= dict.fromkeys(REFERENCE_LOGPS, torch.zeros(len(pairs)))
        elif not isinstance(pairs[0], Pair):
            values = torch.tensor(np.array([pair[1] for pair in pairs]), dtype=torch.float32)
            batch |= dict(zip(REFERENCE_LOGPS, values.unbind(1), strict=True))
        return batch


REFERENCE_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True)
class Scored:
    """Pairs for reward models: [2B, S], and their margins [B]."""

    pad: int

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        """The batch."""
        both = padded([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], self.pad)
        margins = torch.tensor([pair.margin for pair in pairs])
        return {"input_ids": both.input_ids, "attention_mask": both.attention_mask, "margin": margins}


@dataclass(frozen=True)
class Apart:
    """Pairs for CPO and ORPO: chosen and rejected answers ([B, S] each) with labels."""

    pad: int

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        """The batch."""
        batch = {}
        for name in ("chosen", "rejected"):
            texts = padded([getattr(pair, name) for pair in pairs], self.pad)
            batch[f"{name}_input_ids"] = texts.input_ids
            batch[f"{name}_attention_mask"] = texts.attention_mask
            batch[f"{name}_labels"] = texts.labels
        return batch


@dataclass(frozen=True)
class Unpaired:
    """Labelled answers for KTO; and to estimate the divergence each question with the answer of the one before it in
    the batch (arXiv 2402.01306, §4.1), cut where that is longer than the longest example.

    Attributes:
        divergence: whether that is needed.
        max_length: tokens of the longest example.
    """

    pad: int
    divergence: bool
    max_length: int

    def __call__(self, examples: Sequence[Judged]) -> Batch:
        """The batch."""
        texts = [example.text for example in examples]
        batch = {**vars(padded(texts, self.pad)), "label": torch.tensor([example.label for example in examples])}
        if self.divergence:
            wrong = [self._mismatched(text, other) for text, other in zip(texts, texts[-1:] + texts[:-1], strict=True)]
            batch |= {f"KL_{name}": value for name, value in vars(padded(wrong, self.pad)).items()}
        return batch

    def _mismatched(self, text: Tokens, other: Tokens) -> Tokens:
        """The question of one with the answer of the other."""
        start, begin = int(text.mask.argmax()), int(other.mask.argmax())
        ids = np.concatenate([text.input_ids[:start], other.input_ids[begin:]])[: self.max_length]
        mask = np.concatenate([np.zeros(start, np.bool_), other.mask[begin:]])[: self.max_length]
        return Tokens(ids.astype(np.int32).tobytes(), mask.tobytes())


@dataclass(frozen=True)
class Taught:
    """Conversations for GKD ([B, S]), and their beginnings up to the last answer, with padding before them ([B, P])."""

    pad: int

    def __call__(self, texts: Sequence[Tokens]) -> Batch:
        """The batch."""
        whole = padded(texts, self.pad)
        prompts, seen = left_padded([text.input_ids[: text.prompt].tolist() for text in texts], self.pad)
        return {
            "input_ids": whole.input_ids,
            "attention_mask": whole.attention_mask,
            "labels": whole.labels,
            "prompts": prompts,
            "prompt_attention_mask": seen,
        }


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts with padding before them, and what is none of it: [B, P] int64 each."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad)
    seen = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        ids[number, length - len(prompt) :] = torch.tensor(prompt)
        seen[number, length - len(prompt) :] = 1
    return ids, seen
