"""megatron-core's MambaModel without the kernels of mamba-ssm: built, it says what it stores, and computes nothing.

Only imports are stood in for. Parameters, their names and their shares of ranks are megatron-core's own.
"""

import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from converters.config_table import MegatronArguments

TRITON = "megatron.core.inference.contexts.attention_context.triton.tensor_ops"
MAMBA = ("megatron.core.ssm.mamba", "megatron.core.ssm.mlp_layer", "megatron.core.models.mamba")


class GatedNorm(torch.nn.Module):
    """mamba-ssm's, as far as a checkpoint sees it."""

    def __init__(self, size: int, *, device: Any, dtype: torch.dtype, **others: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size, device=device, dtype=dtype))


def _stand_ins() -> dict[str, types.ModuleType]:
    contents: dict[str, dict[str, Any]] = {
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.triton.layernorm_gated": {"RMSNorm": GatedNorm},
        "mamba_ssm.ops.triton.ssd_combined": dict.fromkeys(
            ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined")
        ),
        "mamba_ssm.ops.triton.selective_state_update": {"selective_state_update": None},
        "einops": dict.fromkeys(("rearrange", "repeat")),
        TRITON: dict.fromkeys(("tensor_get_slice_after", "tensor_masked_update", "tensor_merge")),
    }
    made = {}
    for name, content in contents.items():
        made[name] = types.ModuleType(name)
        vars(made[name]).update(content)
    return made


@contextmanager
def _importable() -> Iterator[None]:
    """megatron-core's Mamba as if the kernels were installed; afterwards nothing of it is left imported."""
    with mock.patch.dict(sys.modules, _stand_ins()):
        for name in [name for name in sys.modules if name.startswith(MAMBA)]:
            del sys.modules[name]
        yield


def mamba_model(arguments: MegatronArguments, vocab_size: int) -> Any:
    """The model, of megatron's own layers; norms are stored where TransformerEngine's fused layers have them."""
    with _importable():
        from megatron.core.transformer import TransformerConfig

        block = importlib.import_module("megatron.core.ssm.mamba_block")
        norm = importlib.import_module("swift_mega.model.norm").RMSNorm
        experts = {
            "num_moe_experts": arguments.num_moe_experts,
            "moe_ffn_hidden_size": arguments.moe_ffn_hidden_size,
            "moe_shared_expert_intermediate_size": arguments.moe_shared_expert_intermediate_size,
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
        }
        config = TransformerConfig(
            num_layers=arguments.num_layers,
            hidden_size=arguments.hidden_size,
            ffn_hidden_size=arguments.ffn_hidden_size or None,
            num_attention_heads=arguments.num_attention_heads,
            num_query_groups=arguments.num_query_groups,
            kv_channels=arguments.kv_channels or None,
            normalization=arguments.normalization,
            add_bias_linear=False,
            use_cpu_initialization=True,
            mamba_state_dim=arguments.mamba_state_dim,
            mamba_head_dim=arguments.mamba_head_dim,
            mamba_num_heads=arguments.mamba_num_heads,
            mamba_num_groups=arguments.mamba_num_groups,
            **(experts if arguments.num_moe_experts else {}),
        )
        with mock.patch.object(block, "TENorm", norm):
            model: Any = importlib.import_module("megatron.core.models.mamba.mamba_model").MambaModel(
                config,
                _stack(block, arguments, norm),
                vocab_size=vocab_size,
                max_sequence_length=16,
                hybrid_override_pattern=arguments.hybrid_override_pattern,
                share_embeddings_and_output_weights=not arguments.untie_embeddings_and_output_weights,
            )
    return model


def _stack(block: Any, arguments: MegatronArguments, norm: type) -> Any:
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.spec_utils import ModuleSpec
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

    layer, mixer = (importlib.import_module(f"megatron.core.ssm.mamba_{name}") for name in ("layer", "mixer"))
    mixing = ModuleSpec(
        module=mixer.MambaMixer,
        params={"d_conv": arguments.mamba_conv_kernel_dim},
        submodules=mixer.MambaMixerSubmodules(in_proj=ColumnParallelLinear, out_proj=RowParallelLinear),
    )
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear, core_attention=DotProductAttention, linear_proj=RowParallelLinear
        ),
    )
    mlp = ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    )
    experts = get_moe_module_spec(use_te=False, num_experts=8, moe_grouped_gemm=False)

    def of_transformer(**submodules: Any) -> Any:
        return ModuleSpec(module=TransformerLayer, submodules=TransformerLayerSubmodules(**submodules))

    def fused(own: str, linear: str) -> dict[str, Any]:
        return {own: norm, "sharded_state_dict_keys_map": {f"{own}.": f"{linear}.layer_norm_"}}

    return ModuleSpec(
        module=block.MambaStack,
        submodules=block.MambaStackSubmodules(
            mamba_layer=ModuleSpec(
                module=layer.MambaLayer,
                submodules=layer.MambaLayerSubmodules(mixer=mixing, **fused("norm", "mixer.in_proj")),
            ),
            attention_layer=of_transformer(
                self_attention=attention, **fused("input_layernorm", "self_attention.linear_qkv")
            ),
            mlp_layer=of_transformer(mlp=mlp, **fused("pre_mlp_layernorm", "mlp.linear_fc1")),
            moe_layer=of_transformer(mlp=experts, pre_mlp_layernorm=norm),
        ),
    )
