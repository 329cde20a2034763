"""The barest loop that megatron-core allows, stepped in turn with ours."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from converters import checkpoint
from swift_mega.data.loader import loader
from swift_mega.methods.config import PretrainConfig
from swift_mega.model.build import build_model
from swift_mega.model.weights import load_hf
from swift_mega.train.loop import Callback, Trainer
from swift_mega.train.optimizer import accumulate_in_place
from swift_mega.train.step import Batch, StepResult, mean_loss


class BareLoop:
    """Model, optimizer and a list of batches in memory: nothing is read, logged, voted on or scheduled."""

    def __init__(self, config: PretrainConfig, batches: list[list[Batch]]) -> None:
        folder = Path(config.model.path)
        chunks = build_model(
            checkpoint.read_config(folder), config.model, config.parallel, config.train, config.data.sequence_length
        )
        load_hf(chunks, folder)
        chunks[0].config.finalize_model_grads_func = finalize_model_grads
        chunks[0].config.calculate_per_token_loss = True
        ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        self.chunks = [DistributedDataParallel(chunks[0].config, ddp_config, chunk) for chunk in chunks]
        accumulate_in_place(self.chunks)
        adam = config.optimizer
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(
                lr=adam.lr,
                min_lr=adam.min_lr,
                weight_decay=adam.weight_decay,
                adam_beta2=adam.adam_beta2,
                clip_grad=adam.clip_grad,
                use_distributed_optimizer=True,
            ),
            self.chunks,
        )
        self.batches = iter(batches)
        self.forward_backward = get_forward_backward_func()
        self.sequence_length = config.data.sequence_length
        self.micro_batch_size = config.train.micro_batch_size

    def step(self) -> tuple[torch.Tensor, float]:
        """(loss sum, tokens) of this rank and the gradient norm."""
        microbatches = next(self.batches)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = self.forward_backward(
            forward_step_func=forward_step,
            data_iterator=iter(microbatches),
            model=self.chunks,
            num_microbatches=len(microbatches),
            seq_length=self.sequence_length,
            micro_batch_size=self.micro_batch_size,
            forward_only=False,
        )
        _, grad_norm, _ = self.optimizer.step()
        counts = reports and parallel_state.get_tensor_model_parallel_rank() == 0
        return torch.stack(reports).sum(0) if counts else torch.zeros(2, dtype=torch.float64), grad_norm


def forward_step(batches: Iterator[Batch], model: torch.nn.Module):  # type: ignore[no-untyped-def]
    """One micro-batch, as the schedule wants it."""
    batch = next(batches)
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])

    def loss(output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = torch.tensor(output.numel(), dtype=torch.int)
        return output.sum(), tokens, torch.stack([output.detach().sum().double(), tokens.double()])

    return output, loss


def check_equal(what: str, ours: float, bare: float) -> None:
    """A ratio of times means nothing unless both sides did the same."""
    if ours != bare:
        raise SystemExit(f"the two sides computed different {what}: {ours} and {bare}")


class Pairing(Callback):
    """After each step of the run, one bare step; last among the callbacks, so that it sees all of a step."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.seconds: list[tuple[float, float]] = []

    def on_start(self, trainer: Trainer) -> None:
        stream = trainer.batches.stream  # type: ignore[attr-defined]
        train = self.config.train
        batches = loader(
            stream,
            consumed_samples=0,
            micro_batch_size=train.micro_batch_size,
            dp_rank=parallel_state.get_data_parallel_rank(),
            dp_size=parallel_state.get_data_parallel_world_size(),
            num_workers=0,
        )
        count = trainer.stepper.num_microbatches
        self.bare = BareLoop(self.config, [list(islice(batches, count)) for _ in range(train.steps)])
        dist.barrier()
        self.clock = time.perf_counter()

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        dist.barrier()
        ours = time.perf_counter() - self.clock
        start = time.perf_counter()
        loss, grad_norm = self.bare.step()
        dist.barrier()
        self.seconds.append((ours, time.perf_counter() - start))
        check_equal("losses", mean_loss(result.loss_sum_and_tokens), mean_loss(loss))
        check_equal("gradient norms", result.grad_norm, float(grad_norm))
        dist.barrier()
        self.clock = time.perf_counter()
