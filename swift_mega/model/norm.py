"""Norms for megatron's layers that may run under sequence parallelism.

megatron-core's plain torch norm refuses sequence parallelism, because every rank sees only its part of
the sequence and the weight's gradient must be summed over them. A parameter marked `sequence_parallel`
gets that from `finalize_model_grads`. It has no weights that are stored minus one, either
(`layernorm_zero_centered_gamma`).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """x / √(mean(x²) + eps) · weight over the last dimension, computed in fp32."""

    normalization = "RMSNorm"

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        if config.normalization != self.normalization:
            raise ValueError(f"{type(self).__name__} is a {self.normalization}, not {config.normalization}")
        self.eps = eps
        self.zero_centered = config.layernorm_zero_centered_gamma
        self.weight = self._parameter(config, hidden_size, 0.0 if self.zero_centered else 1.0)

    def _parameter(self, config: TransformerConfig, size: int, value: float) -> torch.nn.Parameter:
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        parameter = torch.nn.Parameter(torch.full((size,), value, dtype=config.params_dtype, device=device))
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return parameter

    def scale(self) -> Tensor:
        """What the normed vector is multiplied by; one is added in fp32, where it rounds nothing away."""
        return self.weight.float() + 1.0 if self.zero_centered else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] → [..., hidden]."""
        scale = self.scale()
        return F.rms_norm(x.to(scale.dtype), (x.size(-1),), scale, self.eps).to(x.dtype)


class LayerNorm(RMSNorm):
    """(x - mean(x)) / √(var(x) + eps) · weight + bias over the last dimension."""

    normalization = "LayerNorm"

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(config, hidden_size, eps)
        self.bias = self._parameter(config, hidden_size, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] → [..., hidden]."""
        scale = self.scale()
        return F.layer_norm(x.to(scale.dtype), (x.size(-1),), scale, self.bias.to(scale.dtype), self.eps).to(x.dtype)


class RMSNormOfHeads(RMSNorm):
    """One RMSNorm over all heads of a token, of which each tensor-parallel rank has some.

    Every rank has the whole weight and uses the part of its heads; megatron sums the gradients of query and
    key norms over the ranks. Key heads that several ranks share count on each, so the mean is still the mean.
    """

    heads: ClassVar[int]
    """Of the whole model."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(config, self.heads * hidden_size, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, heads of this rank, head] → the same."""
        rank = parallel_state.get_tensor_model_parallel_rank()
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        here = x.size(-2)
        sums = x.float().square().sum((-2, -1), keepdim=True)
        # Forward adds up over the ranks; so does backward, as every rank's output depends on the sum.
        whole = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(sums))
        normed = x.float() * torch.rsqrt(whole / (ranks * here * x.size(-1)) + self.eps)
        first = rank * self.heads // ranks
        scale = self.scale().view(self.heads, -1)[first : first + here]
        return (normed * scale).to(x.dtype)


NORMS: dict[str, type[RMSNorm]] = {norm.normalization: norm for norm in (RMSNorm, LayerNorm)}
