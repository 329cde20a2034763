"""Which modules a transformer layer is made of: megatron's layer specs, ours filled in.

Two specs. `local` is megatron's own tensor-parallel layers with torch's attention kernels and our norm;
it runs everywhere. `transformer_engine` is megatron's TransformerEngine spec where that works.
"""

from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import gpt_layer_specs
from megatron.core.ssm.gated_delta_net import GatedDeltaNetSubmodules
from megatron.core.tensor_parallel.layers import RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from converters.config_table import MegatronArguments
from converters.rules import Layers
from swift_mega.base.errors import UserError
from swift_mega.compat import optional
from swift_mega.model.attention import GatedSelfAttention, SDPAAttention, SelfAttentionWithLocalRotary
from swift_mega.model.latent import LatentAttention, LatentNorm
from swift_mega.model.linear import gated_delta_net
from swift_mega.model.norm import NORMS, RMSNormOfHeads


def implementation(wanted: str, arguments: MegatronArguments) -> str:
    """`local` or `transformer_engine`, for the option `transformer_impl`.

    Raises:
        UserError: TransformerEngine was asked for and does not work here or for this model; says why.
    """
    ours = [what for what, needed in _local_only(arguments).items() if needed]
    if wanted == "transformer_engine" and ours:
        raise UserError(
            f"transformer_impl is transformer_engine, which has no {', no '.join(ours)}.",
            "Use `auto` or `local`: this model is built of Megatron's own layers and ours.",
        )
    why_not = "the model needs other layers" if ours else optional.transformer_engine()
    if wanted == "transformer_engine" and why_not is not None:
        raise UserError(
            f"transformer_impl is transformer_engine, which cannot be used here: {why_not}.",
            "Use `auto` or `local`, or install transformer-engine[pytorch,core_cu13] on a machine with an NVIDIA GPU.",
        )
    if wanted == "auto":
        return "local" if why_not is not None else "transformer_engine"
    return wanted


def _local_only(arguments: MegatronArguments) -> dict[str, bool]:
    """What only our local layers have → whether the model needs it."""
    return {
        "norm of what a layer gives back": arguments.norm_placement != "pre",
        "norm over all heads together": arguments.qk_layernorm_whole,
        "soft cap of attention scores": arguments.attention_softcap is not None,
        "second rotary base": arguments.rotary_local_base is not None,
        "gated delta net whose norm is not stored minus one like the others": bool(arguments.linear_attention_freq),
    }


def block_spec(
    arguments: MegatronArguments, config: TransformerConfig, transformer_impl: str, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """What `GPTModel` takes as `transformer_layer_spec`, for one virtual pipeline stage."""
    build = _transformer_engine_layer if transformer_impl == "transformer_engine" else _local_layer
    of_layers = [frozenset(kinds) for kinds in arguments.kinds]
    kinds = {kind: build(arguments, kind) for kind in set(of_layers)}
    for layer in kinds.values():
        _bias_output_projection(arguments, layer)
        _scale_residuals(arguments, layer)
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    here = range(first, first + get_num_layers_to_build(config, vp_stage=vp_stage))
    # A bare layer spec would bring megatron's own norm at the end of the block.
    return TransformerBlockSubmodules(
        layer_specs=[kinds[of_layers[layer]] for layer in here],
        layer_norm=_transformer_engine_norm()
        if transformer_impl == "transformer_engine"
        else NORMS[arguments.normalization],
    )


Kinds = frozenset[Layers]
"""Everything that a layer is."""


def _transformer_engine_layer(arguments: MegatronArguments, kinds: Kinds) -> ModuleSpec:
    experts = "moe" in kinds
    return gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(
        num_experts=arguments.num_moe_experts if experts else None,
        moe_grouped_gemm=experts,
        qk_layernorm=arguments.qk_layernorm,
        multi_latent_attention=arguments.kv_lora_rank is not None,
    )


def _transformer_engine_norm() -> type:
    from megatron.core.extensions.transformer_engine import TENorm

    found: type = TENorm
    return found


def _local_layer(arguments: MegatronArguments, kinds: Kinds) -> ModuleSpec:
    latent, experts = arguments.kv_lora_rank is not None, "moe" in kinds
    layer = gpt_layer_specs.get_gpt_layer_local_spec(
        num_experts=arguments.num_moe_experts if experts else None,
        qk_layernorm=arguments.qk_layernorm,
        multi_latent_attention=latent,
        normalization=arguments.normalization,
    )
    norm = NORMS[arguments.normalization]
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = (
        IdentityOp if arguments.norm_placement == "post" else norm
    )
    layer.submodules.sharded_state_dict_keys_map = _canonical_norms(latent, kinds)
    if experts and arguments.add_bias_linear:
        layer.submodules.mlp.submodules.experts.submodules.linear_fc2 = ExpertRowParallelLinear
    if "linear attention" in kinds:
        layer.submodules.self_attention = gated_delta_net()
        return layer
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = _variant(SDPAAttention, softcap=arguments.attention_softcap)
    if latent:
        layer.submodules.self_attention.module = LatentAttention
        attention.q_layernorm = attention.kv_layernorm = LatentNorm
    elif arguments.qk_layernorm_whole:
        attention.q_layernorm = _variant(RMSNormOfHeads, heads=arguments.num_attention_heads)
        attention.k_layernorm = _variant(RMSNormOfHeads, heads=arguments.num_query_groups)
    elif arguments.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = norm
    if arguments.norm_placement != "pre":
        attention.linear_proj = layer.submodules.mlp.submodules.linear_fc2 = NormedRowParallelLinear
    if arguments.attention_output_gate:
        layer.submodules.self_attention.module = GatedSelfAttention
    if arguments.rotary_local_base is not None:
        layer.submodules.self_attention.module = _variant(
            SelfAttentionWithLocalRotary, local_base=arguments.rotary_local_base
        )
    return layer


def _variant(module: type, **attributes: Any) -> type:
    """The class with other class attributes: megatron makes modules itself and hands over nothing of ours."""
    return type(module.__name__, (module,), attributes)


def _scale_residuals(arguments: MegatronArguments, layer: ModuleSpec) -> None:
    """Multiply what attention and MLP add to the residual stream."""
    multiplier = arguments.residual_multiplier
    if multiplier == 1.0:
        return

    def scaled_bias_dropout_add(training: bool, fused: bool) -> Any:
        add = get_bias_dropout_add(training, fused)

        def scaled(x_with_bias: tuple[Any, Any], residual: Any, probability: float) -> Any:
            return add(tuple(None if x is None else x * multiplier for x in x_with_bias), residual, probability)

        return scaled

    layer.submodules.self_attn_bda = layer.submodules.mlp_bda = scaled_bias_dropout_add


def _canonical_norms(latent: bool, kinds: Kinds) -> dict[str, str]:
    """Where TransformerEngine's layers keep a norm: in the linear layer behind it, if it is the only one there."""
    projection = "in_proj" if "linear attention" in kinds else "linear_qkv"
    attention = {"input_layernorm.": f"self_attention.{projection}.layer_norm_"}
    if latent:
        attention = {
            f"self_attention.{what}_layernorm.": f"self_attention.linear_{what}_up_proj.layer_norm_"
            for what in ("q", "kv")
        }
    return attention | ({} if "moe" in kinds else {"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"})


def _bias_output_projection(arguments: MegatronArguments, layer: ModuleSpec) -> None:
    """Give the attention's output projection a bias of its own; megatron knows one for all layers or none."""
    if not arguments.attention_output_bias or arguments.add_bias_linear:
        return
    attention = layer.submodules.self_attention.submodules
    if isinstance(attention, GatedDeltaNetSubmodules):
        return
    if attention.linear_proj is RowParallelLinear:
        attention.linear_proj = BiasedRowParallelLinear
    else:
        attention.linear_proj = _biased(attention.linear_proj)


class ExpertRowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """megatron's row-parallel layer of an expert with a bias.

    The MLP adds the bias in place, and the sum over a single rank hands on its input, which autograd does not let
    anybody change. And the bias is marked for a sum over the sequence-parallel ranks, which hold other experts'.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bias.sequence_parallel = False

    def forward(self, x: Any) -> tuple[Any, Any]:
        """[s, b, input/TP] → [s, b, output]."""
        output, bias = super().forward(x)
        return output.clone(), bias


class NormedRowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """megatron's row-parallel layer and a norm of what it gives back, bias included."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.post_layernorm = NORMS[config.normalization](config, output_size, config.layernorm_epsilon)

    def forward(self, x: Any) -> tuple[Any, None]:
        """[s, b, input/TP] → [s, b, output]."""
        output, bias = super().forward(x)
        return self.post_layernorm(output if bias is None else output + bias), None


class BiasedRowParallelLinear(RowParallelLinear):  # type: ignore[misc]
    """megatron's row-parallel layer with a bias, whatever the config says about the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": True})


def _biased(linear: type) -> type:
    """The same for TransformerEngine's layer, which exists only where it is installed."""

    def with_bias(self: Any, *args: Any, **kwargs: Any) -> None:
        linear.__init__(self, *args, **{**kwargs, "bias": True})  # type: ignore[misc]

    return type(f"Biased{linear.__name__}", (linear,), {"__init__": with_bias})
