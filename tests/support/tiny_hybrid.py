"""Tiny random models of the families whose layers are not all of one kind; see `tests.support.tiny`."""

from typing import Any

LINEAR, FULL = "linear_attention", "full_attention"

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-next": (
        "qwen3_next",
        {
            "vocab_size": 101,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 6,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 10,
            "linear_conv_kernel_dim": 3,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 20,
        },
    ),
    "qwen3-next-dense-layers": (
        "qwen3_next",
        {
            "vocab_size": 128,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
            "layer_types": [FULL, LINEAR, FULL, LINEAR],
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 5,
            "linear_value_head_dim": 7,
            "num_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 12,
            "norm_topk_prob": False,
            "mlp_only_layers": [0, 3],
            "tie_word_embeddings": True,
        },
    ),
}
"""Name → (transformers' model type, its config)."""

CONVERTED_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba2": ("mamba2", {"vocab_size": 101, "num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 5}),
    "mamba2-one-group": (
        "mamba2",
        {
            "vocab_size": 128,
            "hidden_size": 30,
            "num_heads": 5,
            "head_dim": 18,
            "expand": 3,
            "n_groups": 1,
            "state_size": 7,
            "conv_kernel": 3,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
        },
    ),
    "nemotron-h": (
        "nemotron_h",
        {
            "vocab_size": 101,
            "head_dim": 12,
            "hybrid_override_pattern": "M-*EM",
            "num_hidden_layers": 5,
            "n_routed_experts": 2,
            "moe_intermediate_size": 12,
            "moe_shared_expert_intermediate_size": 20,
            "mamba_num_heads": 6,
            "mamba_head_dim": 7,
            "n_groups": 3,
            "ssm_state_size": 5,
        },
    ),
    "nemotron-h-even": (
        "nemotron_h",
        {
            "vocab_size": 101,
            "hybrid_override_pattern": "M-*E",
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "moe_shared_expert_intermediate_size": 20,
            "mamba_num_heads": 4,
            "mamba_head_dim": 7,
            "n_groups": 2,
            "ssm_state_size": 5,
        },
    ),
    "nemotron-h-experts": (
        "nemotron_h",
        {
            "vocab_size": 128,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "layers_block_type": [LINEAR, "moe", FULL, "moe"],
            "mamba_num_heads": 5,
            "mamba_head_dim": 6,
            "n_groups": 1,
            "ssm_state_size": 4,
            "conv_kernel": 3,
            "n_routed_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "moe_shared_expert_intermediate_size": 7,
            "moe_latent_size": 16,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 2.5,
        },
    ),
}
"""Models that Megatron cannot compute."""
