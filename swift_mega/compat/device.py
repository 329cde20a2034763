"""What this rank computes on: its name, and the most memory it has held."""

import resource

import torch


def device_name() -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_memory_bytes() -> int:
    """Most memory allocated on the GPU since the start; on a CPU, the most this process has had resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
