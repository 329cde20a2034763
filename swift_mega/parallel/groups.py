"""Process groups: torch.distributed, Megatron's parallel groups and the random states that belong to them.

Started by torchrun, a process reads its rank and where to meet from the environment. Started alone, it
is a world of one and needs no port.
"""

import os
import random
from datetime import timedelta

import numpy as np
import torch
from torch._C._distributed_c10d import HashStore

from swift_mega import compat
from swift_mega.parallel.config import ParallelConfig


def initialize(config: ParallelConfig, seed: int) -> None:
    """Join the job and set up `config`'s groups; a default process group that exists already is kept.

    Args:
        config: the parallel sizes, checked before by `layout.check_layout`.
        seed: of the generators. Tensor-parallel ranks get different states for dropout inside a split layer
            and equal ones outside, as in Megatron.
    """
    compat.install()
    from megatron.core import parallel_state

    if not torch.distributed.is_initialized():
        _join(timedelta(seconds=config.distributed_timeout_s))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=config.expert_model_parallel_size,
        expert_tensor_parallel_size=config.expert_tensor_parallel_size,
        distributed_timeout_minutes=config.distributed_timeout_s / 60,
    )
    seed_everything(seed)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy, torch and Megatron's tracker. Ranks of one pipeline stage start equal, stages differ."""
    from megatron.core import parallel_state, tensor_parallel

    stage_seed = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(stage_seed)
    np.random.seed(stage_seed)
    torch.manual_seed(stage_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(stage_seed, force_reset_rng=True)


def shutdown(*, keep_world: bool = False) -> None:
    """Leave every group; with `keep_world` all but the default one. Safe where nothing was initialized."""
    if not torch.distributed.is_initialized():
        return
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if not keep_world:
        torch.distributed.destroy_process_group()
        return
    for group in list(torch.distributed.distributed_c10d._world.pg_map):
        if group is not torch.distributed.group.WORLD:
            torch.distributed.destroy_process_group(group)


def _join(timeout: timedelta) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl"
    if "RANK" in os.environ:
        torch.distributed.init_process_group(backend, timeout=timeout)
    else:
        store = HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
