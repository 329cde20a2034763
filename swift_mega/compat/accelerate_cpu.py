"""FSDP2 and ZeRO without CUDA: torch and DeepSpeed run them on gloo; accelerate and transformers know GPUs only."""

import importlib
import os
import sys
from typing import Any

import torch
import torch.distributed as dist


def let_fsdp_run() -> None:
    """accelerate takes an FSDP plugin on kinds of GPUs, and without a word trains with DDP on CPUs.

    What it does with one asks for nothing that a CPU has not: while its state is made, the job is said to be of a kind
    that has FSDP, and then it is of the kind FSDP. Calling this again does nothing.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__
    if torch.cuda.is_available() or getattr(original, "lets_fsdp_run", False):
        return

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        shared = PartialState._shared_state
        if fsdp_plugin is not None and shared.get("distributed_type") == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_XPU
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)

    init.lets_fsdp_run = True  # type: ignore[attr-defined]
    AcceleratorState.__init__ = init


def join_deepspeed() -> None:
    """Let DeepSpeed take the process group that is there; ZeRO-3 asks for it while weights are loaded.

    It would look for MPI otherwise, and take a machine without GPU for one with a GPU that it cannot see.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    if not dist.is_initialized():
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        for name, value in alone.items():
            os.environ.setdefault(name, value)
    import deepspeed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def leave() -> None:
    """Forget how this job was sharded, so that a later run of this process can be otherwise.

    accelerate says it to itself in the environment, DeepSpeed in variables of its modules.
    """
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)
    if "deepspeed" in sys.modules:
        from deepspeed.comm import comm
        from deepspeed.utils import groups
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        comm.cdb = None
        importlib.reload(groups)
        unset_hf_deepspeed_config()
