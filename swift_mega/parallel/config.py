"""How the model and the batch are spread over processes. Torch-free: `--help` and the launcher read it."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class ParallelConfig:
    """Megatron's parallel sizes; data parallel is what the world size leaves over."""

    tensor_model_parallel_size: int = 1
    """Ranks that share every layer's matrices (TP). Divides heads and FFN size, and KV heads or is divided by them."""

    pipeline_model_parallel_size: int = 1
    """Ranks that each hold a run of consecutive layers (PP)."""

    virtual_pipeline_model_parallel_size: int | None = None
    """Runs of layers per pipeline rank (interleaved schedule, VPP). null: one."""

    expert_model_parallel_size: int = 1
    """Ranks, across data parallel ones, that each hold a part of the experts of every layer (EP)."""

    expert_tensor_parallel_size: int | None = None
    """Ranks that share the matrices of one expert. null: as tensor_model_parallel_size."""

    sequence_parallel: bool = False
    """Split norms and dropout along the sequence over the TP ranks: less activation memory, same result."""

    overlap_grad_reduce: bool = False
    """Reduce gradients bucket by bucket during the backward pass."""

    overlap_param_gather: bool = False
    """Gather the distributed optimizer's parameters during the next forward pass. Needs overlap_grad_reduce."""

    distributed_timeout_s: int = 600
    """A collective that waits longer than this ends the job and names the rank."""
