"""Two tiny random models for each family with experts; see `tests.support.tiny`."""

from typing import Any

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "moe_intermediate_size": 12,
    "num_experts_per_tok": 2,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"vocab_size": 101, "num_local_experts": 4, "intermediate_size": 20}),
    "mixtral-tied": (
        "mixtral",
        {
            "vocab_size": 128,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "sliding_window": 6,
            "num_local_experts": 2,
            "intermediate_size": 24,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-moe": (
        "qwen3_moe",
        {
            "vocab_size": 130,
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 12,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe-dense-layers": (
        "qwen3_moe",
        {
            "vocab_size": 99,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "attention_bias": True,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "mlp_only_layers": [0, 2],
        },
    ),
    "qwen2-moe": (
        "qwen2_moe",
        {
            "vocab_size": 151,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "shared_expert_intermediate_size": 28,
        },
    ),
    "qwen2-moe-sparse-steps": (
        "qwen2_moe",
        {
            "vocab_size": 128,
            "num_key_value_heads": 4,
            "num_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 12,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
        },
    ),
    "deepseek-v2-lite": (
        "deepseek_v2",
        {
            **LATENT,
            "vocab_size": 101,
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.5,
        },
    ),
    "deepseek-v2-groups": (
        "deepseek_v2",
        {
            **LATENT,
            "vocab_size": 128,
            "n_routed_experts": 6,
            "n_shared_experts": 1,
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
            "rope_parameters": YARN,
        },
    ),
    "deepseek-v3": (
        "deepseek_v3",
        {
            **LATENT,
            "vocab_size": 130,
            "n_routed_experts": 8,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 2,
            "rope_parameters": YARN,
        },
    ),
    "moonlight": (
        "deepseek_v3",
        {
            **LATENT,
            "vocab_size": 99,
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.446,
            "rms_norm_eps": 1e-5,
            "num_mtp_layers": 0,
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            "vocab_size": 101,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 20,
            "sliding_window": 5,
        },
    ),
    "gpt-oss-plain-rope": (
        "gpt_oss",
        {
            "vocab_size": 128,
            "head_dim": 8,
            "num_key_value_heads": 1,
            "num_local_experts": 2,
            "num_experts_per_tok": 2,
            "intermediate_size": 12,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "olmoe": ("olmoe", {"vocab_size": 101, "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 20}),
    "olmoe-normalised": (
        "olmoe",
        {
            "vocab_size": 128,
            "num_key_value_heads": 4,
            "attention_bias": True,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "intermediate_size": 12,
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
        },
    ),
    "glm4-moe": (
        "glm4_moe",
        {
            "vocab_size": 101,
            "head_dim": 16,
            "attention_bias": True,
            "use_qk_norm": True,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 12,
            "routed_scaling_factor": 2.5,
        },
    ),
    "glm4-moe-experts-only": (
        "glm4_moe",
        {
            "vocab_size": 128,
            "num_key_value_heads": 1,
            "n_routed_experts": 6,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "first_k_dense_replace": 0,
        },
    ),
    "minimax-m2": (
        "minimax_m2",
        {
            "vocab_size": 101,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 20,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "minimax-m2-one-group": (
        "minimax_m2",
        {
            "vocab_size": 128,
            "num_key_value_heads": 4,
            "head_dim": 12,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "intermediate_size": 12,
        },
    ),
}
"""Name → (transformers' model type, its config)."""

CONVERTED_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v2-best-of-group": (
        "deepseek_v2",
        {
            **LATENT,
            "vocab_size": 101,
            "n_routed_experts": 8,
            "num_experts_per_tok": 4,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    "ernie4_5-moe": (
        "ernie4_5_moe",
        {
            "vocab_size": 101,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 12,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 2,
        },
    ),
    "ernie4_5-moe-tied": (
        "ernie4_5_moe",
        {
            "vocab_size": 128,
            "moe_num_experts": 6,
            "moe_k": 3,
            "moe_intermediate_size": 20,
            "moe_num_shared_experts": 0,
            "moe_layer_start_index": 0,
            "tie_word_embeddings": True,
        },
    ),
    "llama4": (
        "llama4_text",
        {
            "vocab_size": 101,
            "head_dim": 16,
            "intermediate_size": 20,
            "intermediate_size_mlp": 36,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
        },
    ),
    "llama4-experts-only": (
        "llama4_text",
        {
            "vocab_size": 128,
            "head_dim": 8,
            "num_key_value_heads": 1,
            "intermediate_size": 12,
            "num_local_experts": 3,
            "attention_bias": True,
        },
    ),
}
"""Models that Megatron cannot compute."""
