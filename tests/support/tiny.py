"""Two tiny random models per family, with the odd shapes that conversion and parallelism stumble over.

Every one has 4 layers (PP2 × VPP2), 4 heads (TP2) and weights without a pattern: norms are not ones,
biases not zeros.
"""

from collections import ChainMap
from pathlib import Path
from typing import Any

from tests.support import tiny_dense, tiny_hybrid, tiny_moe

SEQUENCE = 16
"""Tokens of the sequences on which logits are compared; longer than the sliding windows here."""

COMMON: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"vocab_size": 101}),
    "llama3-tied-bias": (
        "llama",
        {
            "vocab_size": 256,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "rope_parameters": LLAMA3_ROPE,
            "max_position_embeddings": 131072,
        },
    ),
    "mistral-window": ("mistral", {"vocab_size": 130, "sliding_window": 5}),
    "mistral-head-dim": (
        "mistral",
        {"vocab_size": 128, "sliding_window": None, "head_dim": 12, "num_key_value_heads": 1},
    ),
    "qwen2-tied": ("qwen2", {"vocab_size": 151, "tie_word_embeddings": True}),
    "qwen2-window": (
        "qwen2",
        {
            "vocab_size": 128,
            "num_key_value_heads": 4,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 2,
        },
    ),
    "qwen3-tied": ("qwen3", {"vocab_size": 300, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias": ("qwen3", {"vocab_size": 99, "head_dim": 8, "num_key_value_heads": 1, "attention_bias": True}),
}
"""Name → (transformers' model type, its config)."""


def save(name: str, folder: Path, dtype: str = "float32") -> Path:
    """Make the tiny model `name` and save it as transformers does."""
    others = [models for file in (tiny_dense, tiny_hybrid, tiny_moe) for models in (file.MODELS, file.CONVERTED_ONLY)]
    model_type, changes = ChainMap(TINY, *others)[name]
    if model_type in tiny_dense.REMOTE:
        _save("llama", changes, name, folder.with_name(f"{folder.name}-llama"), dtype)
        tiny_dense.save_remote(model_type, folder)
    else:
        _save(model_type, changes, name, folder, dtype)
    return folder


def _save(model_type: str, changes: dict[str, Any], name: str, folder: Path, dtype: str) -> None:
    import torch
    import transformers

    torch.manual_seed(sum(map(ord, name)))
    config = transformers.AutoConfig.for_model(model_type, **{**COMMON, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, param in model.named_parameters():
            if param.dim() == 1:
                param.normal_(mean=1.0 if "norm" in key else 0.0, std=0.2)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def tokens(vocab_size: int, batch: int = 2, sequence: int = SEQUENCE) -> Any:
    """[batch, sequence] token ids, always the same ones."""
    import torch

    return torch.randint(0, vocab_size, (batch, sequence), generator=torch.Generator().manual_seed(vocab_size))
