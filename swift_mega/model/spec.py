"""Which modules a transformer layer is made of: megatron's layer specs, ours filled in.

Two specs. `local` is megatron's own tensor-parallel layers with torch's attention kernels and our norm;
it runs everywhere. `transformer_engine` is megatron's TransformerEngine spec where that works.
"""

from typing import Any

from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from converters.config_table import MegatronArguments
from swift_mega.base.errors import UserError
from swift_mega.compat import optional
from swift_mega.model.attention import SDPAAttention
from swift_mega.model.norm import RMSNorm


def implementation(wanted: str) -> str:
    """`local` or `transformer_engine`, for the option `transformer_impl`.

    Raises:
        UserError: TransformerEngine was asked for and does not work here; says why.
    """
    why_not = optional.transformer_engine()
    if wanted == "transformer_engine" and why_not is not None:
        raise UserError(
            f"transformer_impl is transformer_engine, which cannot be used here: {why_not}.",
            "Use `auto` or `local`, or install transformer-engine[pytorch,core_cu13] on a machine with an NVIDIA GPU.",
        )
    if wanted == "auto":
        return "local" if why_not is not None else "transformer_engine"
    return wanted


def block_spec(
    arguments: MegatronArguments, config: TransformerConfig, transformer_impl: str, vp_stage: int | None
) -> TransformerBlockSubmodules | ModuleSpec:
    """What `GPTModel` takes as `transformer_layer_spec`, for one virtual pipeline stage."""
    if transformer_impl == "transformer_engine":
        layer = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=arguments.qk_layernorm)
        _bias_output_projection(arguments, layer)
        return layer
    layer = _local_layer(arguments)
    _bias_output_projection(arguments, layer)
    # A bare layer spec would bring megatron's own norm at the end of the block.
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=vp_stage), layer_norm=RMSNorm
    )


def _local_layer(arguments: MegatronArguments) -> ModuleSpec:
    layer = gpt_layer_specs.get_gpt_layer_local_spec(
        qk_layernorm=arguments.qk_layernorm, normalization=arguments.normalization
    )
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = SDPAAttention
    if arguments.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer


def _bias_output_projection(arguments: MegatronArguments, layer: ModuleSpec) -> None:
    """Give the attention's output projection a bias of its own; megatron knows one for all layers or none."""
    if not arguments.attention_output_bias or arguments.add_bias_linear:
        return
    attention = layer.submodules.self_attention.submodules
    if attention.linear_proj is RowParallelLinear:
        attention.linear_proj = BiasedRowParallelLinear
    else:
        attention.linear_proj = _biased(attention.linear_proj)


class BiasedRowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """megatron's row-parallel layer with a bias, whatever the config says about the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": True})


def _biased(linear: type) -> type:
    """The same for TransformerEngine's layer, which exists only where it is installed."""

    def with_bias(self: Any, *args: Any, **kwargs: Any) -> None:
        linear.__init__(self, *args, **{**kwargs, "bias": True})  # type: ignore[misc]

    return type(f"Biased{linear.__name__}", (linear,), {"__init__": with_bias})
