"""Multi-latent attention (MLA) on megatron's own tensor-parallel layers.

megatron-core has it for TransformerEngine's layers, where the projections to the latents are copies on
every tensor-parallel rank. Its local layers split them, and there the rotated part of the key gets the
gradient of one rank's heads alone.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from swift_mega.model.norm import RMSNorm

EPSILON = 1e-6
"""Of the norms of the latents, whatever the other norms have; so in transformers and in the models' own code."""


class LatentNorm(RMSNorm):
    """RMSNorm of a latent."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = EPSILON) -> None:
        super().__init__(config, hidden_size, EPSILON)


class LatentAttention(MLASelfAttention):  # type: ignore[misc]
    """megatron's, whose split projection to key and value gives back whole rows with whole gradients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config.tensor_model_parallel_size > 1:
            self.linear_kv_down_proj.register_forward_hook(self._whole)

    def _whole(self, module: torch.nn.Module, inputs: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """[s, b, (kv_lora_rank + rotated)/TP] → all columns; with sequence parallelism [s/TP, b, …].

        Each rank's heads send back a gradient of their own for the rotated part. Under sequence parallelism
        megatron adds them up where it gathers that part; otherwise nobody does.
        """
        latents = gather_from_tensor_model_parallel_region(output[0])
        if self.config.sequence_parallel:
            return scatter_to_sequence_parallel_region(latents), output[1]
        key_value, rotated = latents.split([self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim], dim=-1)
        return torch.cat([key_value, copy_to_tensor_model_parallel_region(rotated)], dim=-1), output[1]
