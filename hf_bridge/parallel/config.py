"""How a tuning run is spread over processes. Torch-free: `--help` reads it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class ParallelConfig:
    """Several processes."""

    deepspeed: str | None = None
    """`zero1`, `zero2`, `zero3`, `zero2-offload`, `zero3-offload`, or a DeepSpeed file."""

    fsdp: str | None = None
    """`fsdp2`, `fsdp2-offload`: torch's fully sharded data parallelism."""

    sequence_parallel_size: int = 1
    """Processes that share each sequence."""

    sequence_parallel_mode: Literal["ulysses", "ring"] = "ulysses"
    """`ulysses`: each has some heads of all tokens in attention; `ring`: keys and values go round."""
