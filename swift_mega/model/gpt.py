"""megatron's GPTModel whose padded vocabulary reaches neither loss nor gradient, and that can scale both its ends.

The embedding is padded so that tensor-parallel ranks get equal, well-aligned parts. The padded rows
produce logits; left alone they take a share of the softmax, and the loss depends on the layout.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel as MegatronGPTModel
from megatron.core.tensor_parallel.utils import VocabUtility
from torch import Tensor


class _MaskColumns(torch.autograd.Function):
    """Overwrite the last columns by the lowest number, in place.

    Their probability is then exactly zero, and so is what the cross entropy sends back through them:
    the gradient passes unchanged, without a copy of the largest activation of the model.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, real_columns: int) -> Tensor:
        ctx.mark_dirty(logits)
        logits[..., real_columns:] = torch.finfo(logits.dtype).min
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _scaled(multiplier: float) -> Callable[..., Tensor]:
    """A hook that scales what a module gives back."""

    def hook(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * torch.tensor(multiplier, dtype=output.dtype)  # on the CPU it counts as a number, on any device

    return hook


def _tempered(divisor: float, softcap: float | None) -> Callable[..., tuple[Tensor, Any]]:
    """A hook that divides the logits of an output layer and caps them."""

    def hook(module: torch.nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        logits, bias = output
        logits = logits / divisor
        return logits if softcap is None else softcap * torch.tanh(logits / softcap), bias

    return hook


class GPTModel(MegatronGPTModel):  # type: ignore[misc]
    """GPTModel that knows how many rows of its vocabulary are real.

    Args:
        real_vocab_size: tokens of the model; the rows from there to `vocab_size` are padding.
        embedding_multiplier: what embeddings are multiplied by, rounded to their dtype first, as transformers does.
        logits_divisor: what logits are divided by.
        logits_softcap: c in c·tanh(logit/c).
        arguments: of megatron's GPTModel.
    """

    def __init__(
        self,
        *,
        real_vocab_size: int,
        embedding_multiplier: float = 1.0,
        logits_divisor: float = 1.0,
        logits_softcap: float | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.real_vocab_size = real_vocab_size
        if self.pre_process and embedding_multiplier != 1.0:
            self.embedding.register_forward_hook(_scaled(embedding_multiplier))
        if self.post_process and (logits_divisor != 1.0 or logits_softcap is not None):
            self.output_layer.register_forward_hook(_tempered(logits_divisor, logits_softcap))

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Cross entropy per token over the real vocabulary.

        Args:
            labels: [b, s].
            logits: [s, b, vocab/TP], this rank's columns; changed in place.

        Returns:
            [b, s].
        """
        real = self.real_columns()
        if real < logits.size(-1):
            logits = _MaskColumns.apply(logits, real)  # type: ignore[no-untyped-call]
        loss: Tensor = super().compute_language_model_loss(labels, logits)
        return loss

    def real_columns(self) -> int:
        """How many of this tensor-parallel rank's vocabulary rows are no padding."""
        group = self.pg_collection.tp
        first: int
        last: int
        first, last = VocabUtility.vocab_range_from_global_vocab_size(self.vocab_size, group.rank(), group.size())
        return max(0, min(last, self.real_vocab_size) - first)
