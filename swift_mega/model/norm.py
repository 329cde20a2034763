"""RMSNorm for megatron's layers that may run under sequence parallelism.

megatron-core's plain torch norm refuses sequence parallelism, because every rank sees only its part of
the sequence and the weight's gradient must be summed over them. A parameter marked `sequence_parallel`
gets that from `finalize_model_grads`.
"""

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """x / √(mean(x²) + eps) · weight over the last dimension, computed in fp32."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        if config.normalization != "RMSNorm" or config.layernorm_zero_centered_gamma:
            raise ValueError("this layer is the plain RMSNorm; no LayerNorm, no zero-centered weight")
        self.eps = eps
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] → [..., hidden]."""
        return F.rms_norm(x, (x.size(-1),), self.weight, self.eps)
