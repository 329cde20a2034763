"""Mamba 2: layers with a state space in the place of attention and MLP.

transformers' gated norm is over all groups together; that of megatron-core's mixer is over each group.
"""

from dataclasses import dataclass
from typing import Any

from converters.config_table import Choice, Config, Fixed, MegatronArguments, Opposite, Same, number
from converters.families._mamba import MAMBA_CONFIG, MAMBA_ENDS, MAMBA_LAYERS
from converters.family import Family
from converters.moe_table import Needs


@dataclass(frozen=True)
class _AllMamba:
    """Every layer is of the one kind."""

    fields: tuple[str, ...] = ("num_hidden_layers",)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        layers = number("num_hidden_layers", config.get("num_hidden_layers", 64), least=1)
        return {"num_layers": layers, "hybrid_override_pattern": "M" * layers}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {"num_hidden_layers": arguments.num_layers}


FAMILY = Family(
    name="mamba2",
    architectures=("Mamba2ForCausalLM",),
    config=(
        _AllMamba(),
        Same("hidden_size", "hidden_size", default=4096),
        Same("vocab_size", "vocab_size", default=32768),
        Same("layer_norm_epsilon", "norm_epsilon", default=1e-5),
        Same("initializer_range", "init_method_std", default=0.1),
        Opposite("tie_word_embeddings", "untie_embeddings_and_output_weights", default=False),
        Choice("hidden_act", "activation", {"silu": "silu"}),
        Same("conv_kernel", "mamba_conv_kernel_dim", default=4),
        Same("state_size", "mamba_state_dim", default=128),
        Same("head_dim", "mamba_head_dim", default=64),
        Same("num_heads", "mamba_num_heads", default=128),
        Same("n_groups", "mamba_num_groups", default=8),
        *MAMBA_CONFIG,
        # megatron-core wants to know of attention and MLP, although no layer has either, and of no length at all.
        Fixed(
            {
                "ffn_hidden_size": 0,
                "num_attention_heads": 1,
                "num_query_groups": 1,
                "kv_channels": 0,
                "max_position_embeddings": 1 << 20,
                "position_embedding_type": "none",
            }
        ),
        Needs("mamba"),
    ),
    rules=(*MAMBA_ENDS, *MAMBA_LAYERS),
)
