"""Which tokens of a sequence each process holds, and batches cut down to them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_bridge.templates.encoding import IGNORED
from swift_mega.base.errors import UserError

Batch = dict[str, Tensor]

PADDING: dict[str, float] = {
    "input_ids": 0,
    "position_ids": 0,
    "segments": 0,
    "labels": IGNORED,
    "loss_weights": 0.0,
}
"""What a batch may hold, each [B, S], and what stands behind its end."""


@dataclass(frozen=True)
class Layout:
    """One process of a group that shares sequences.

    Attributes:
        mode: `ulysses`: each has consecutive tokens. `ring`: with P processes the sequence has 2·P chunks, and process
            r has chunks r and 2·P - 1 - r, so that all have as many keys to look at under a causal mask.
        rank: of this process among `size`.
    """

    mode: Literal["ulysses", "ring"]
    rank: int
    size: int

    @property
    def multiple(self) -> int:
        """What the length of a sequence has to be a multiple of."""
        return self.size * (2 if self.mode == "ring" else 1)

    def positions(self, length: int, rank: int | None = None) -> Tensor:
        """Where in a sequence of `length` the tokens of a process (None: this one) are, in its own order."""
        rank = self.rank if rank is None else rank
        chunks = torch.arange(length).reshape(self.multiple, -1)
        return chunks[[rank, self.multiple - 1 - rank]].flatten() if self.mode == "ring" else chunks[rank]

    def split(self, batch: Batch) -> Batch:
        """A batch of whole sequences → what this process computes of it.

        Args:
            batch: `input_ids` and, if there are such, `labels` (not shifted), `loss_weights`, `position_ids`, and
                `segments` (numbers of rows from 1, 0 for padding; or `attention_mask`, which is the same with one row);
                each [B, S].

        Returns:
            `input_ids`, `position_ids`, `shift_labels` and `loss_weights` [B, S' / P], where label and weight are those
            of the next token, wherever that is; and `segments` [B, S'], of the whole sequence. S' is S, padded.

        Raises:
            UserError: something in the batch that cannot be split.
        """
        whole = _whole(batch)
        whole = {name: _pad(value, self.multiple, PADDING[name]) for name, value in whole.items()}
        length = whole["input_ids"].shape[1]
        labels = torch.nn.functional.pad(whole.pop("labels")[:, 1:], (0, 1), value=IGNORED)
        weights = torch.nn.functional.pad(whole.pop("loss_weights")[:, 1:], (0, 1))
        weights = weights.masked_fill(labels == IGNORED, 0.0)
        segments = whole.pop("segments")
        own = self.positions(length)
        whole |= {"shift_labels": labels, "loss_weights": weights}
        return {name: value[:, own].contiguous() for name, value in whole.items()} | {"segments": segments}


def _whole(batch: Batch) -> Batch:
    """With everything that was left out because it goes without saying."""
    tokens = batch["input_ids"]
    given = dict(batch)
    mask = given.pop("attention_mask", None)
    if mask is not None and "segments" not in given:
        given["segments"] = mask
    if odd := [name for name, value in given.items() if name not in PADDING or value.shape != tokens.shape]:
        shapes = ", ".join(f"`{name}` {list(given[name].shape)}" for name in odd)
        raise UserError(
            f"sequence parallelism cannot split {shapes} of a batch with `input_ids` {list(tokens.shape)}.",
            f"It splits {', '.join(PADDING)} and attention_mask, each of the shape of `input_ids`.",
        )
    labels = given.get("labels", torch.full_like(tokens, IGNORED))
    usual = {
        "position_ids": torch.arange(tokens.shape[1]).expand_as(tokens),
        "segments": torch.ones_like(tokens),
        "labels": labels,
        "loss_weights": (labels != IGNORED).float(),
    }
    return usual | given


def _pad(value: Tensor, multiple: int, padding: float) -> Tensor:
    return torch.nn.functional.pad(value, (0, -value.shape[1] % multiple), value=padding)
