"""Examples as the tensors that a model takes.

Shapes: B sequences of S tokens. A sequence holds one example, or with packing several, each of which sees itself alone.
That is said by positions: they start again with every example, from which transformers makes the mask of each kind
of attention (block-diagonal for SDPA and eager, lengths for flash-attention, windows where a model has them). Padding
is one more example behind the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_bridge.data.packing import Packing, join, pack
from hf_bridge.data.rows import Rows
from hf_bridge.methods.encode import Example, Examples
from hf_bridge.templates.encoding import IGNORED


class Sequences(torch.utils.data.Dataset[list[Example]]):
    """What is in each sequence: one example, or those that share it.

    Args:
        rows: what the examples were made of.
        capacity: tokens of a sequence that several share; None: each has one example.
    """

    def __init__(self, examples: Examples, rows: Rows, capacity: int | None = None) -> None:
        self.examples, self.rows = examples, rows
        self.packing: Packing | None = pack(examples.lengths, capacity) if capacity else None
        self.tokens = examples.tokens
        self.channels = sorted(examples.counts.channels)

    @property
    def fingerprint(self) -> str:
        """The checksum of all examples."""
        return self.examples.fingerprint

    def __len__(self) -> int:
        return len(self.examples) if self.packing is None else len(self.packing)

    def __getitem__(self, number: int) -> list[Example]:
        numbers = [number] if self.packing is None else self.packing[number].tolist()
        return [self.examples[one] for one in numbers]


@dataclass(frozen=True)
class Collator:
    """Sequences of examples → a batch.

    Attributes:
        pad: token id that fills up.
        channels: names, for `channels` in the batch; none: it has none.
    """

    pad: int
    channels: list[str] = field(default_factory=list)

    def __call__(self, sequences: Sequence[Sequence[Example]]) -> dict[str, torch.Tensor]:
        """The batch.

        Returns:
            input_ids, position_ids: [B, S] int64.
            shift_labels: [B, S] int64, at each place the token that follows in its example, `IGNORED` where nothing is
                trained.
            loss_weights: [B, S] float32, of `shift_labels`.
            logits_to_keep: [K] int64, places at which some sequence has a label: no others need logits.
            segments: [B, S] int64, number of the example from 1, 0 where nothing is.
            num_tokens: [B] int64, without padding.
            channels: [B, S] int64, index into `channels`, -1 where there is none.
        """
        length = max(sum(example.tokens for example in sequence) for sequence in sequences)
        rows = [self._row(sequence, length) for sequence in sequences]
        batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        kept = (batch["shift_labels"] != IGNORED).any(0).nonzero()[:, 0]
        return {**batch, "logits_to_keep": kept}

    def _row(self, sequence: Sequence[Example], length: int) -> dict[str, Any]:
        tokens = [np.frombuffer(example.ids, np.int32) for example in sequence]
        joined = join(tokens, length, self.pad)
        used = sum(map(len, tokens))
        positions = joined.positions
        positions[used:] = np.arange(length - used)
        weights = np.zeros(length, np.float32)
        # The first token of an example has none before it that could predict it.
        weights[:used] = np.concatenate([np.frombuffer(example.weights, np.float32) for example in sequence])
        weights[positions == 0] = 0
        labels = np.where(weights != 0, joined.tokens, IGNORED)
        row = {
            "input_ids": joined.tokens,
            "position_ids": positions,
            "segments": joined.segments,
            "shift_labels": np.append(labels[1:], IGNORED),
            "loss_weights": np.append(weights[1:], np.float32(0)),
            "num_tokens": np.int64(used),
        }
        return {**row, "channels": self._channels(sequence, length)} if self.channels else row

    def _channels(self, sequence: Sequence[Example], length: int) -> np.ndarray:
        numbers = {name: number for number, name in enumerate(self.channels)}
        found = np.full(length, -1, np.int64)
        own = [numbers.get(str(example.channel), -1) for example in sequence]
        repeated = np.repeat(own, [example.tokens for example in sequence])
        found[: len(repeated)] = repeated
        return found
