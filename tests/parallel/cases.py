"""What the tests of process groups run on every rank."""

import random

import numpy as np
import torch

from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig


def ranks(tp: int, pp: int, vpp: int | None = None) -> dict[str, int]:
    """This rank's places in the groups."""
    from megatron.core import parallel_state

    groups.initialize(
        ParallelConfig(
            tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, virtual_pipeline_model_parallel_size=vpp
        ),
        seed=1,
    )
    return {
        "tp": parallel_state.get_tensor_model_parallel_rank(),
        "pp": parallel_state.get_pipeline_model_parallel_rank(),
        "dp": parallel_state.get_data_parallel_rank(),
        "dp_size": parallel_state.get_data_parallel_world_size(),
    }


def draws(tp: int, pp: int, seed: int) -> tuple[float, float, float, float, float]:
    """First numbers of Python, numpy, torch, and of a dropout outside and inside a split layer."""
    from megatron.core import tensor_parallel

    groups.initialize(ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp), seed)
    outside = torch.rand(1).item()
    with tensor_parallel.get_cuda_rng_tracker().fork():
        inside = torch.rand(1).item()
    return random.random(), float(np.random.rand()), torch.rand(1).item(), outside, inside


def sum_of_ranks() -> float:
    """An all-reduce over the world."""
    groups.initialize(ParallelConfig(), seed=1)
    total = torch.tensor([float(torch.distributed.get_rank())])
    torch.distributed.all_reduce(total)
    return total.item()
