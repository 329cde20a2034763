"""Attention by torch's scaled_dot_product_attention, as a core attention of megatron's layers.

megatron-core's own local attention writes out the [b, heads, s, s] scores; this one runs torch's flash
kernels, on a CPU too.

Shapes: s sequence, b micro batch, h query heads and g key-value heads of this tensor-parallel rank,
d head size.
"""

import contextlib
import copy
import functools
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention, make_sharded_tensors_for_checkpoint
from torch import Tensor


@functools.lru_cache(maxsize=8)
def sliding_window_mask(length: int, window: tuple[int, int], device: torch.device) -> Tensor:
    """[s, s], True where query (row) may see key (column): at most `window` = (left, right) tokens away."""
    left, right = window
    may_see = torch.ones(length, length, dtype=torch.bool, device=device)
    return may_see.triu(-left).tril(right)


class SDPAAttention(MegatronModule):  # type: ignore[misc]
    """Causal or masked attention; grouped queries, sliding window and dropout included.

    Args:
        config: of the model.
        layer_number: counted from 1 over the whole model; decides whether a sliding window applies.
        attn_mask_type: what `attention_mask=None` means, unless the call says otherwise.
        attention_type: megatron's "self" or "cross"; no difference here.
        softmax_scale: factor of the scores. None: 1/√d.
        k_channels, v_channels: of a head where they differ; the tensors say the same.
        cp_comm_type: of context parallelism, which this attention does not do.
    """

    softcap: ClassVar[float | None] = None
    """c in c·tanh(score/c)."""

    def __init__(
        self,
        *,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config=config)
        if config.context_parallel_size > 1 or config.apply_query_key_layer_scaling:
            raise ValueError("SDPAAttention has no context parallelism and no layer scaling")
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window: tuple[int, int] | None = config.window_size if windowed else None
        if config.softmax_type not in ("vanilla", "learnable"):
            raise ValueError(f"SDPAAttention has no softmax of type {config.softmax_type}")
        self.softmax_offset: torch.nn.Parameter | None = None
        if config.softmax_type == "learnable":
            heads = config.num_attention_heads // config.tensor_model_parallel_size
            device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
            self.softmax_offset = torch.nn.Parameter(torch.zeros(heads, dtype=config.params_dtype, device=device))
            set_tensor_model_parallel_attributes(self.softmax_offset, is_parallel=True, dim=0, stride=1)
        # The kernels have nothing for either.
        self.scores_written_out = self.softcap is not None or self.softmax_offset is not None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The scores of attending to nothing, split over the heads."""
        own = self.state_dict(prefix="", keep_vars=True)
        found: dict[str, Any] = make_sharded_tensors_for_checkpoint(own, prefix, {"softmax_offset": 0}, sharded_offsets)
        return found

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """[s, b, h, d], [s, b, g, d], [s, b, g, d] → [s, b, h·d].

        `attention_mask` is megatron's, True where a score is masked; a layer's window holds besides. None leaves it to
        the mask type.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("SDPAAttention takes no attention bias and no packed sequences")
        mask, causal = self._visible(query, key, attention_mask, attn_mask_type or self.attn_mask_type)
        grouped = query.size(2) != key.size(2)
        in_kernel = (
            not self.scores_written_out
            and mask is None
            and (query.device.type == "cpu" or query.dtype != torch.float32)
        )
        if grouped and not in_kernel:
            # Only the flash kernels know grouped queries; the others would write out all scores.
            key, value = (kv.repeat_interleave(query.size(2) // key.size(2), dim=2) for kv in (key, value))
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if self.scores_written_out:
            return self._written_out(query, key, value, mask).permute(2, 0, 1, 3).flatten(2)
        with self._random_states():
            context = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=causal,
                dropout_p=self.config.attention_dropout if self.training else 0.0,
                scale=self.softmax_scale,
                enable_gqa=grouped and in_kernel,
            )
        return context.permute(2, 0, 1, 3).flatten(2)

    def _written_out(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[b, h, s, d] each → [b, h, s, d]; without a mask it is causal."""
        scores = (query @ key.transpose(-1, -2)).float() * (self.softmax_scale or query.size(-1) ** -0.5)
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if mask is None:
            length = query.size(-2)
            mask = sliding_window_mask(length, (length, 0), query.device)
        scores = scores.masked_fill(~mask, float("-inf"))
        if self.softmax_offset is not None:
            nothing = self.softmax_offset.float().view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, nothing], dim=-1)
        weights = scores.softmax(dim=-1).to(query.dtype)[..., : key.size(-2)]
        with self._random_states():
            weights = F.dropout(weights, self.config.attention_dropout, self.training)
        return weights @ value

    def _visible(
        self, query: Tensor, key: Tensor, attention_mask: Tensor | None, mask_type: AttnMaskType
    ) -> tuple[Tensor | None, bool]:
        """The mask for torch (True where a score counts) and whether the kernel shall mask causally instead."""
        length = query.size(0)
        windowed = self.window is not None and length > self.window[0] + 1
        if attention_mask is not None:
            return ~attention_mask & self._window(query) if windowed else ~attention_mask, False
        if mask_type == AttnMaskType.no_mask:
            return None, False
        return (self._window(query), False) if windowed else (None, True)

    def _window(self, query: Tensor) -> Tensor:
        assert self.window is not None
        return sliding_window_mask(query.size(0), self.window, query.device)

    def _random_states(self) -> contextlib.AbstractContextManager[Any]:
        """Heads are split over TP ranks, so their dropout draws from the rank's own state.

        With sequence parallelism the whole block runs on that state already.
        """
        dropping = self.training and self.config.attention_dropout > 0
        if not dropping or self.config.sequence_parallel:
            return contextlib.nullcontext()
        fork: contextlib.AbstractContextManager[Any] = tensor_parallel.get_cuda_rng_tracker().fork()
        return fork


class SelfAttentionWithLocalRotary(SelfAttention):  # type: ignore[misc]
    """megatron's self attention whose windowed layers have a rotary embedding of their own, without scaling."""

    local_base: ClassVar[float]

    def __init__(self, *, config: TransformerConfig, layer_number: int, **kwargs: Any) -> None:
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        if windowed and hasattr(config, "yarn_rotary_scaling_factor"):
            # It also scales queries and keys, in every layer whose config has it.
            config = copy.copy(config)
            del config.yarn_rotary_scaling_factor
        super().__init__(config=config, layer_number=layer_number, **kwargs)
        self.local_rotary: RotaryEmbedding | None = None
        if windowed:
            self.local_rotary = RotaryEmbedding(
                kv_channels=config.kv_channels,
                rotary_percent=1.0,
                rotary_interleaved=config.rotary_interleaved,
                rotary_base=self.local_base,
                use_cpu_initialization=config.use_cpu_initialization,
                cp_group=self.pg_collection.cp,
            )

    def forward(self, *args: Any, rotary_pos_emb: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As megatron's; `rotary_pos_emb` [s, 1, 1, d] is the one of the layers without a window."""
        if self.local_rotary is not None:
            rotary_pos_emb = self.local_rotary(rotary_pos_emb.size(0) * self.config.context_parallel_size)
        output: tuple[Tensor, Tensor | None] = super().forward(*args, rotary_pos_emb=rotary_pos_emb, **kwargs)
        return output


class GatedSelfAttention(SelfAttention):  # type: ignore[misc]
    """megatron's self attention with an output gate.

    Where several ranks share a key head, megatron cuts the queries down to those of the rank and leaves the gates
    of all of them, which then do not fit.
    """

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries and gates [s, b, h, d], keys and values [s, b, g, d], in megatron's order: q, k, v, gate."""
        query, key, value, gate = super().get_query_key_value_tensors(*args, **kwargs)
        here = query.size(2)
        first = parallel_state.get_tensor_model_parallel_rank() % (gate.size(2) // here) * here
        return query, key, value, gate[:, :, first : first + here]
