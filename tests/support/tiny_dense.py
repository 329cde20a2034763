"""Tiny models of the dense families that do more than Llama's layers, for tests/support/tiny.py.

InternLM's code is not part of transformers. Its tensors are made here by hand, under their real names, of a
Llama that computes the same; that Llama lies beside the folder, to compare with.
"""

import json
from pathlib import Path
from typing import Any

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {"vocab_size": 101, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma-bias": ("gemma", {"vocab_size": 128, "num_key_value_heads": 1, "head_dim": 8, "attention_bias": True}),
    "gemma2": (
        "gemma2",
        {
            "vocab_size": 130,
            "head_dim": 12,
            "tie_word_embeddings": True,
            "sliding_window": 5,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2-no-caps": (
        "gemma2",
        {
            "vocab_size": 99,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "vocab_size": 151,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "sliding_window": 5,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "gemma3-cap": (
        "gemma3_text",
        {
            "vocab_size": 128,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "final_logit_softcapping": 2.0,
        },
    ),
    "phi3": (
        "phi3",
        {
            "vocab_size": 101,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "phi3-window": (
        "phi3",
        {"vocab_size": 130, "num_key_value_heads": 1, "sliding_window": 5, "tie_word_embeddings": True},
    ),
    "ministral": (
        "ministral",
        {
            "vocab_size": 99,
            "head_dim": 12,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        },
    ),
    "ministral-full": (
        "ministral",
        {"vocab_size": 128, "num_key_value_heads": 1, "head_dim": 8, "layer_types": ["full_attention"] * 4},
    ),
    "granite": (
        "granite",
        {
            "vocab_size": 101,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "granite-bias": (
        "granite",
        {
            "vocab_size": 128,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "residual_multiplier": 0.5,
            "tie_word_embeddings": True,
        },
    ),
    "glm4": ("glm4", {"vocab_size": 151, "head_dim": 16}),
    "glm4-no-bias": (
        "glm4",
        {
            "vocab_size": 128,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("olmo2", {"vocab_size": 101}),
    "olmo2-bias": (
        "olmo2",
        {"vocab_size": 128, "num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "olmo3": (
        "olmo3",
        {
            "vocab_size": 130,
            "sliding_window": 5,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500_000.0},
            },
        },
    ),
    "olmo3-yarn": (
        "olmo3",
        {
            "vocab_size": 101,
            "sliding_window": 9,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8,
                    "attention_factor": 1.2079441541679836,
                    "rope_theta": 500_000.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 500_000.0},
            },
        },
    ),
    "olmo3-full": (
        "olmo3",
        {"vocab_size": 99, "num_key_value_heads": 4, "layer_types": ["full_attention"] * 4},
    ),
    "exaone4": ("exaone4", {"vocab_size": 101, "sliding_window": 5, "sliding_window_pattern": 2}),
    "exaone4-full": (
        "exaone4",
        {
            "vocab_size": 128,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "sliding_window": None,
            "layer_types": ["full_attention"] * 4,
            "tie_word_embeddings": True,
        },
    ),
    "nemotron": ("nemotron", {"vocab_size": 101}),
    "nemotron-bias": (
        "nemotron",
        {
            "vocab_size": 128,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "ernie4_5": ("ernie4_5", {"vocab_size": 101, "head_dim": 16, "tie_word_embeddings": True}),
    "ernie4_5-bias": ("ernie4_5", {"vocab_size": 130, "num_key_value_heads": 1, "head_dim": 8, "use_bias": True}),
    "qwen3-yarn": (
        "qwen3",
        {
            "vocab_size": 101,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "truncate": False,
            },
        },
    ),
    "internlm2": ("internlm2", {"vocab_size": 101, "rope_theta": 50_000.0}),
    "internlm2-bias": (
        "internlm2",
        {
            "vocab_size": 128,
            "num_key_value_heads": 1,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
        },
    ),
    "internlm3": ("internlm3", {"vocab_size": 101, "head_dim": 12, "num_key_value_heads": 1}),
    "internlm3-bias": ("internlm3", {"vocab_size": 130, "attention_bias": True, "mlp_bias": True}),
}
"""Name → (model type, its config; of InternLM the config of the Llama behind it)."""

CONVERTED_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "ministral3": ("ministral3", {"vocab_size": 101, "head_dim": 12, "num_key_value_heads": 1}),
    "phi3-longrope": (
        "phi3",
        {
            "vocab_size": 130,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.5, 2.0],
                "long_factor": [2.0, 3.0, 4.0],
            },
        },
    ),
}
"""Models that need what megatron-core does not have."""

REMOTE = ("internlm2", "internlm3")
"""Model types that transformers does not know."""


def reference(folder: Path) -> Path:
    """The folder that transformers can load and that computes the same."""
    llama = folder.with_name(f"{folder.name}-llama")
    return llama if llama.exists() else folder


def save_remote(model_type: str, folder: Path) -> None:
    """Write `folder` as the remote-code model of the Llama in `reference(folder)`."""
    from safetensors.torch import load_file, save_file

    llama = folder.with_name(f"{folder.name}-llama")
    config = json.loads((llama / "config.json").read_text())
    tensors = load_file(llama / "model.safetensors")
    biases = {"bias": config.pop("attention_bias")}
    if model_type == "internlm2":
        tensors = internlm2_tensors(tensors, config["num_key_value_heads"])
        names = {"architectures": ["InternLM2ForCausalLM"]}
    else:
        biases["qkv_bias"] = biases["bias"]
        names = {"architectures": ["InternLM3ForCausalLM"]}
    rope = config.pop("rope_parameters")
    scaling = {"type": rope["rope_type"], "factor": rope["factor"]} if rope["rope_type"] != "default" else None
    config.pop("mlp_bias")
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config |= {"model_type": model_type, "rope_theta": rope["rope_theta"], "rope_scaling": scaling, **names, **biases}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


INTERNLM2 = {
    "model.embed_tokens.": "model.tok_embeddings.",
    "lm_head.": "output.",
    ".input_layernorm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".self_attn.o_proj.": ".attention.wo.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.up_proj.": ".feed_forward.w3.",
    ".mlp.down_proj.": ".feed_forward.w2.",
}
"""Part of Llama's name → of InternLM 2's."""


def internlm2_tensors(llama: dict[str, Any], groups: int) -> dict[str, Any]:
    """InternLM 2's tensors: `wqkv` has for each key head its query heads, itself, and its value head."""
    import torch

    found = {}
    for name, tensor in llama.items():
        if ".q_proj." in name:
            parts = [llama[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            wqkv = torch.cat([part.reshape(groups, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 1)
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = wqkv
        elif ".k_proj." not in name and ".v_proj." not in name:
            for old, new in INTERNLM2.items():
                name = name.replace(old, new)
            found[name] = tensor
    return found
