"""One optimizer step and one evaluation batch on megatron-core's schedules.

Shapes: S sequence, B micro-batch, as megatron-core has them; with tensor parallelism the loss per
token is already complete on every TP rank.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

Batch = dict[str, torch.Tensor]


class Method(Protocol):
    """What differs between pretraining and everything after it: a forward pass over a batch, and a loss."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The loss of each token [B, S] on the last pipeline stage, hidden states on the others."""
        ...

    def loss(self, batch: Batch, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the loss (a scalar) and the number of tokens it is over (an int scalar)."""
        ...


class StepResult(NamedTuple):
    """What one step leaves: this rank's share of the loss (sum, tokens), on its device, and the global norm."""

    loss_sum_and_tokens: torch.Tensor
    grad_norm: float
    lr: float
    """The learning rate of this step's update."""


class Stepper:
    """Runs the micro-batches of a global batch through the pipeline; knows neither data nor schedule of saving."""

    def __init__(
        self,
        chunks: list[DistributedDataParallel],
        method: Method,
        *,
        micro_batch_size: int,
        sequence_length: int,
        num_microbatches: int,
    ) -> None:
        self.chunks = chunks
        self.method = method
        self.num_microbatches = num_microbatches
        self._forward_backward = partial(
            get_forward_backward_func(),
            forward_step_func=self._forward_step,
            model=chunks,
            num_microbatches=num_microbatches,
            seq_length=sequence_length,
            micro_batch_size=micro_batch_size,
        )

    def train(
        self,
        batches: Iterator[Batch],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
    ) -> StepResult:
        """Forward and backward over one global batch, then the update."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        reports = self._forward_backward(data_iterator=self._per_chunk(batches), forward_only=False)
        lr = optimizer.param_groups[0]["lr"]
        _, grad_norm, _ = optimizer.step()
        scheduler.step(1)
        return StepResult(self._sum(reports), float(grad_norm or 0.0), lr)

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch]) -> torch.Tensor:
        """This rank's (loss sum, tokens) over one global batch, without touching the model."""
        reports = self._forward_backward(data_iterator=self._per_chunk(batches), forward_only=True)
        return self._sum(reports)

    def _per_chunk(self, batches: Iterator[Batch]) -> list[Iterator[Batch]] | Iterator[Batch]:
        """Every virtual stage walks the same micro-batches at its own pace."""
        if len(self.chunks) == 1:
            return batches
        microbatches = [next(batches) for _ in range(self.num_microbatches)]
        return [iter(microbatches) for _ in self.chunks]

    def _forward_step(self, batches: Iterator[Batch], model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        batch = next(batches)
        return self.method.forward(model, batch), partial(self._loss, batch)

    def _loss(self, batch: Batch, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Three values make megatron-core divide by the tokens of the whole global batch
        # (calculate_per_token_loss); two would be scaled by the context-parallel size.
        loss_sum, tokens = self.method.loss(batch, output)
        report = torch.stack([loss_sum.detach().double(), tokens.double()])
        return loss_sum, tokens.int(), report

    def _sum(self, reports: list[torch.Tensor]) -> torch.Tensor:
        # The last pipeline stage has reports; of its TP ranks, which all hold the same, one counts.
        if reports and parallel_state.get_tensor_model_parallel_rank() == 0:
            return torch.stack(reports).sum(0)
        return torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())


def mean_loss(loss_sum_and_tokens: torch.Tensor) -> float:
    """The mean loss per token over all ranks. Collective, and synchronises with the device."""
    total = loss_sum_and_tokens.clone()
    torch.distributed.all_reduce(total)
    loss_sum, tokens = (float(value) for value in total)
    return loss_sum / max(tokens, 1.0)
