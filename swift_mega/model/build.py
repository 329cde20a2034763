"""A megatron GPT model from a Hugging Face config and the options of the run."""

import dataclasses
import functools
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.activations import quick_gelu
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from converters.config_table import MegatronArguments
from converters.family import family_of, padded_vocab_size
from converters.missing import check_trainable
from swift_mega.base.errors import UserError
from swift_mega.model import spec
from swift_mega.model.config import ModelConfig
from swift_mega.model.gpt import GPTModel
from swift_mega.model.initial import initialize_weights
from swift_mega.parallel.config import ParallelConfig
from swift_mega.parallel.layout import check_layout, check_sequence_length


class TrainOptions(Protocol):
    """The options of training that decide how a model is built."""

    seed: int
    recompute_granularity: Literal["selective", "full"] | None
    recompute_num_layers: int


ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "squared_relu": lambda x: F.relu(x).square(),
}


YARN = ("original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
"""What megatron calls the same."""


def build_model(
    hf_config: dict[str, Any],
    model: ModelConfig,
    parallel: ParallelConfig,
    train: TrainOptions,
    sequence_length: int,
) -> list[MegatronModule]:
    """This rank's part of the model on its device: one chunk per virtual pipeline stage, not yet wrapped for DDP.

    Weights are random with `model.weights == "random"`, the same on every layout, and unset otherwise:
    `weights.load_hf` fills them.

    Raises:
        UserError: the layout does not fit the model, the sequence is longer than the model's, or megatron-core
            cannot compute the model.
    """
    arguments = family_of(hf_config).megatron_arguments(hf_config)
    check_trainable(arguments)
    check_layout(parallel, arguments, torch.distributed.get_world_size())
    check_sequence_length(parallel, arguments, sequence_length)
    config = transformer_config(arguments, model, parallel, train)
    virtual = parallel.virtual_pipeline_model_parallel_size
    stages = range(virtual) if virtual is not None else [None]
    chunks = [_build_chunk(arguments, config, model, stage) for stage in stages]
    if model.weights == "random":
        initialize_weights(chunks, arguments, train.seed)
    return chunks


def _build_chunk(
    arguments: MegatronArguments, config: TransformerConfig, model: ModelConfig, vp_stage: int | None
) -> MegatronModule:
    chunk = GPTModel(
        config=config,
        transformer_layer_spec=spec.block_spec(
            arguments, config, spec.implementation(model.transformer_impl, arguments), vp_stage
        ),
        real_vocab_size=arguments.vocab_size,
        embedding_multiplier=arguments.embedding_multiplier,
        logits_divisor=arguments.logits_divisor,
        logits_softcap=arguments.logits_softcap,
        vocab_size=padded_vocab_size(
            arguments.vocab_size, model.make_vocab_size_divisible_by, config.tensor_model_parallel_size
        ),
        max_sequence_length=arguments.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        fp16_lm_cross_entropy=False,
        parallel_output=True,
        share_embeddings_and_output_weights=not arguments.untie_embeddings_and_output_weights,
        position_embedding_type="yarn" if _scales_by_yarn(arguments) else "rope",
        rotary_percent=arguments.rotary_percent,
        rotary_base=arguments.rotary_base,
        rope_scaling=arguments.use_rope_scaling,
        rope_scaling_factor=arguments.rope_scaling_factor,
        seq_len_interpolation_factor=arguments.seq_len_interpolation_factor,
        vp_stage=vp_stage,
    )
    mark_split_weights(chunk)
    chunk.to(torch.cuda.current_device())
    return _in_bf16(config, chunk) if config.bf16 else chunk


def _in_bf16(config: TransformerConfig, chunk: MegatronModule) -> MegatronModule:
    """All but the bias of experts, which megatron itself keeps in fp32, but only from the first step on."""
    wrapped = Float16Module(config, chunk)
    for module in chunk.modules():
        if isinstance(module, TopKRouter):
            module._maintain_float32_expert_bias()
    return wrapped


def mark_split_weights(chunk: MegatronModule) -> None:
    """Tell megatron which weights each tensor-parallel rank holds a part of.

    Its layers say so while they draw initial weights, which `perform_initialization=False` leaves out. An
    unmarked weight counts as a copy: the gradient norm would then take it from one rank alone, and
    clipping would depend on the layout.
    """
    for module in chunk.modules():
        split = isinstance(module, ColumnParallelLinear | VocabParallelEmbedding | RowParallelLinear)
        if split and module.weight is not None and not hasattr(module.weight, "tensor_model_parallel"):
            axis = 1 if isinstance(module, RowParallelLinear) else 0
            set_tensor_model_parallel_attributes(module.weight, is_parallel=True, dim=axis, stride=1)


def precision_of(wanted: str) -> torch.dtype:
    """The dtype behind the option `precision`. auto: bf16 on a GPU, fp32 on a CPU."""
    if wanted == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]


def transformer_config(
    arguments: MegatronArguments, model: ModelConfig, parallel: ParallelConfig, train: TrainOptions
) -> TransformerConfig:
    """megatron's config. `finalize_model_grads_func` and what else belongs to a training step is the loop's to set."""
    config_class = TransformerConfig if arguments.kv_lora_rank is None else MLATransformerConfig
    config = config_class(
        **_architecture(arguments),
        **_experts(arguments, model),
        **_latent_attention(arguments),
        **_linear_attention(arguments),
        **_parallelism(parallel),
        **_numerics(arguments, precision_of(model.precision)),
        **_recompute(train),
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
    )
    if arguments.yarn is not None and _scales_by_yarn(arguments):
        # megatron's GPTModel looks for them there, although its config has no such fields.
        for name, value in dataclasses.asdict(arguments.yarn).items():
            setattr(config, "yarn_rotary_scaling_factor" if name == "factor" else f"yarn_{name}", value)
    return config


def _scales_by_yarn(arguments: MegatronArguments) -> bool:
    """Whether the model's one rotary embedding is scaled by YaRN; in latent attention every layer has its own."""
    return arguments.yarn is not None and arguments.kv_lora_rank is None


def _architecture(arguments: MegatronArguments) -> dict[str, Any]:
    return {
        "num_layers": arguments.num_layers,
        "hidden_size": arguments.hidden_size,
        "ffn_hidden_size": arguments.ffn_hidden_size,
        "num_attention_heads": arguments.num_attention_heads,
        "num_query_groups": arguments.num_query_groups,
        "kv_channels": arguments.kv_channels,
        "layernorm_epsilon": arguments.norm_epsilon,
        "normalization": arguments.normalization,
        "layernorm_zero_centered_gamma": arguments.layernorm_zero_centered_gamma,
        "rotary_interleaved": arguments.rotary_interleaved,
        "no_rope_freq": arguments.no_rope_freq,
        "softmax_scale": arguments.softmax_scale,
        "gated_linear_unit": arguments.gated_linear_unit,
        "activation_func": ACTIVATIONS[arguments.activation],
        "glu_linear_offset": arguments.glu_linear_offset,
        "activation_func_clamp_value": arguments.activation_func_clamp_value,
        "softmax_type": arguments.softmax_type,
        "add_bias_linear": arguments.add_bias_linear,
        "add_qkv_bias": arguments.add_qkv_bias,
        "qk_layernorm": arguments.qk_layernorm,
        "attention_output_gate": arguments.attention_output_gate,
        "window_size": arguments.window_size,
        "window_attn_skip_freq": arguments.window_attn_skip_freq,
    }


def _experts(arguments: MegatronArguments, model: ModelConfig) -> dict[str, Any]:
    if arguments.num_moe_experts is None:
        return {}
    return {
        "num_moe_experts": arguments.num_moe_experts,
        "moe_ffn_hidden_size": arguments.moe_ffn_hidden_size,
        "moe_shared_expert_intermediate_size": arguments.moe_shared_expert_intermediate_size,
        "moe_shared_expert_gate": arguments.moe_shared_expert_gate,
        "moe_layer_freq": arguments.moe_layer_freq or 1,
        "moe_router_topk": arguments.moe_router_topk,
        "moe_router_score_function": arguments.moe_router_score_function,
        "moe_router_pre_softmax": arguments.moe_router_pre_softmax,
        "moe_router_topk_scaling_factor": arguments.moe_router_topk_scaling_factor,
        "moe_router_num_groups": arguments.moe_router_num_groups,
        "moe_router_group_topk": arguments.moe_router_group_topk,
        "moe_router_enable_expert_bias": arguments.moe_router_enable_expert_bias,
        "moe_router_bias_update_rate": model.moe_router_bias_update_rate,
        "moe_aux_loss_coeff": model.moe_aux_loss_coeff,
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": spec.implementation(model.transformer_impl, arguments) == "transformer_engine",
    }


def _latent_attention(arguments: MegatronArguments) -> dict[str, Any]:
    if arguments.kv_lora_rank is None:
        return {}
    yarn = arguments.yarn
    return {
        "q_lora_rank": arguments.q_lora_rank,
        "kv_lora_rank": arguments.kv_lora_rank,
        "qk_head_dim": arguments.qk_head_dim,
        "qk_pos_emb_head_dim": arguments.qk_pos_emb_head_dim,
        "v_head_dim": arguments.v_head_dim,
        "rotary_base": arguments.rotary_base,
        "rope_type": "rope" if yarn is None else "yarn",
        # megatron takes it for the scale of the scores also where nothing is scaled.
        "rotary_scaling_factor": 1.0 if yarn is None else yarn.factor,
        **({} if yarn is None else {name: getattr(yarn, name) for name in YARN}),
    }


def _linear_attention(arguments: MegatronArguments) -> dict[str, Any]:
    if arguments.linear_attention_freq is None:
        return {}
    return {
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": arguments.linear_attention_freq,
        "linear_conv_kernel_dim": arguments.linear_conv_kernel_dim,
        "linear_key_head_dim": arguments.linear_key_head_dim,
        "linear_value_head_dim": arguments.linear_value_head_dim,
        "linear_num_key_heads": arguments.linear_num_key_heads,
        "linear_num_value_heads": arguments.linear_num_value_heads,
    }


def _parallelism(parallel: ParallelConfig) -> dict[str, Any]:
    interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "expert_model_parallel_size": parallel.expert_model_parallel_size,
        "expert_tensor_parallel_size": parallel.expert_tensor_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        # The interleaved schedule computes wrong gradients, without an error, where its sends are neither
        # overlapped nor unbatched (PP2 × VPP2: gradient norm 1.61 for 0.579 with megatron-core 0.16.1).
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        # An overlapped send may still be under way when the schedule frees its tensor: CUDA streams order the two,
        # gloo does not.
        "deallocate_pipeline_outputs": parallel.pipeline_model_parallel_size > 1
        and (torch.cuda.is_available() or not interleaved),
    }


def _numerics(arguments: MegatronArguments, dtype: torch.dtype) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "use_cpu_initialization": not on_gpu,
        "perform_initialization": False,
        # These compile themselves for a GPU; on a CPU their plain forms are as fast.
        "bias_activation_fusion": on_gpu and arguments.swiglu,
        "bias_dropout_fusion": on_gpu,
        "cross_entropy_loss_fusion": on_gpu,
        "cross_entropy_fusion_impl": "native",
        # The loop turns it on with the gradient buffers that it needs.
        "gradient_accumulation_fusion": False,
        # Both need kernels of apex or TransformerEngine.
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "cuda_graph_scope": [],
    }


def _recompute(train: TrainOptions) -> dict[str, Any]:
    if train.recompute_granularity is None:
        return {}
    if train.recompute_granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    if train.recompute_num_layers < 1:
        raise UserError(f"recompute_num_layers is {train.recompute_num_layers}.", "It must be at least 1.")
    return {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": train.recompute_num_layers,
    }
