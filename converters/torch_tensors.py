"""Carrier arrays ⇄ torch tensors, for those who have imported torch: the bits are the same, the memory is shared."""

import numpy as np
import torch

from converters.tensors import CARRIER


def to_torch(array: np.ndarray, dtype: str) -> torch.Tensor:
    """The tensor whose bits a carrier array holds, on the same memory."""
    return torch.from_numpy(array).view(getattr(torch, dtype))


def to_carrier(tensor: torch.Tensor) -> np.ndarray:
    """The bits of a CPU tensor, on the same memory where it is contiguous."""
    carrier = CARRIER[dtype_name(tensor.dtype)]
    tensor = tensor.contiguous()
    if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = tensor.view({1: torch.uint8, 2: torch.uint16}[carrier.itemsize])
    return np.asarray(tensor.numpy())


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
