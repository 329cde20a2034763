"""Which tokens of a sequence each process holds, and batches cut down to them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hf_bridge.templates.encoding import IGNORED
from swift_mega.base.errors import UserError

Batch = dict[str, Tensor]

PADDING: dict[str, float] = {
    "input_ids": 0,
    "position_ids": 0,
    "segments": 0,
    "shift_labels": IGNORED,
    "loss_weights": 0.0,
    "channels": -1,
}
"""What of a batch is split, each [B, S], and what stands behind its end; see `hf_bridge.methods.batches`."""

MADE_ANEW = ("num_tokens", "logits_to_keep")
"""What is counted over the tokens that are left."""


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
            batch: of `hf_bridge.methods.batches.Collator`, whose labels and weights are those of the next token.

        Returns:
            The same of [B, S' / P] tokens, S' being S made a multiple; but `segments` [B, S'] of the whole sequence.

        Raises:
            UserError: something in the batch that cannot be split.
        """
        size = batch["input_ids"].shape
        given = {name: value for name, value in batch.items() if name not in MADE_ANEW}
        if odd := [name for name, value in given.items() if name not in PADDING or value.shape != size]:
            shapes = ", ".join(f"`{name}` {list(given[name].shape)}" for name in odd)
            raise UserError(
                f"sequence parallelism cannot split {shapes} of a batch with `input_ids` {list(size)}.",
                f"It splits {', '.join(PADDING)}, each of the shape of `input_ids`.",
            )
        missing = -size[1] % self.multiple
        whole = {name: functional.pad(value, (0, missing), value=PADDING[name]) for name, value in given.items()}
        segments = whole["segments"]
        own = self.positions(segments.shape[1])
        part = {name: value[:, own].contiguous() for name, value in whole.items()}
        kept = (part["shift_labels"] != IGNORED).any(0).nonzero()[:, 0]
        counted = {"num_tokens": (part["segments"] != 0).sum(1), "logits_to_keep": kept}
        return part | counted | {"segments": segments}
