"""The arguments that Megatron-LM finds in a checkpoint and takes over with `--use-checkpoint-args`.

They are those of megatron-core's model under the names of its command line, which differ here and there.
Source: `load_args_from_checkpoint` and `check_checkpoint_args` in megatron.training.checkpointing (Megatron-LM 0.19).
"""

import argparse
import dataclasses

from converters.config_table import MegatronArguments


def megatron_lm_arguments(arguments: MegatronArguments, padded_vocab_size: int) -> argparse.Namespace:
    """What Megatron-LM would have been started with to train this model."""
    values = {
        name: value
        for name, value in dataclasses.asdict(arguments).items()
        if isinstance(value, bool | int | float | str | list | tuple | type(None))
    }
    grouped = arguments.num_query_groups != arguments.num_attention_heads
    values |= {
        "group_query_attention": grouped,
        "num_query_groups": arguments.num_query_groups if grouped else 1,
        "num_experts": arguments.num_moe_experts,
        "multi_latent_attention": arguments.kv_lora_rank is not None,
        "apply_layernorm_1p": arguments.layernorm_zero_centered_gamma,
        "swiglu": arguments.swiglu,
        "squared_relu": arguments.activation == "squared_relu",
        "mtp_num_layers": arguments.mtp_num_layers or None,
        "add_position_embedding": False,
        "use_rotary_position_embeddings": False,
        "apply_query_key_layer_scaling": False,
        "hidden_dropout": 0.0,
        "seq_length": arguments.max_position_embeddings,
        "padded_vocab_size": padded_vocab_size,
        "ckpt_format": "torch_dist",
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "expert_model_parallel_size": 1,
    }
    return argparse.Namespace(**values)
