"""Tiny random models in Hugging Face format, made by transformers: two or more odd ones for each family."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support import adapters
from tests.support.adapters import Adapter

BASE = {
    "vocab_size": 131,  # not divisible by 128, nor by any tensor parallel size
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "LlamaConfig",
        {
            "num_key_value_heads": 1,
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": LLAMA3_ROPE,
            "max_position_embeddings": 16384,
        },
    ),
    "llama-tied": ("LlamaConfig", {"num_key_value_heads": 3, "tie_word_embeddings": True, "dtype": "bfloat16"}),
    "llama-bias": ("LlamaConfig", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16}),
    "mistral-tied": (
        "MistralConfig",
        {"num_key_value_heads": 1, "sliding_window": None, "tie_word_embeddings": True, "dtype": "bfloat16"},
    ),
    "qwen2": (
        "Qwen2Config",
        {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen2-tied": ("Qwen2Config", {"num_key_value_heads": 1, "tie_word_embeddings": True, "dtype": "bfloat16"}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True}),
    "qwen3-tied": (
        "Qwen3Config",
        {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True, "dtype": "bfloat16"},
    ),
}
SHARDED = "qwen2"
"""The variant that is saved as several files."""


@pytest.fixture(scope="session")
def hf_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a variant, saved by transformers with a tokenizer's files beside; made once, not to be changed."""
    made: dict[str, Path] = {}

    def make(variant: str) -> Path:
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(variant)
            _save(variant, made[variant])
        return made[variant]

    return make


def _save(variant: str, folder: Path) -> None:
    config_class, own = VARIANTS[variant]
    config = getattr(transformers, config_class)(**{**BASE, **own})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, or a mix-up between layers would not show
            parameter.normal_()
    model.save_pretrained(folder, max_shard_size="60KB" if variant == SHARDED else "5GB")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}{{ messages }}")


@pytest.fixture(scope="module")
def megatron() -> Iterator[None]:
    """megatron-core with a process group of one."""
    from swift_mega.parallel import groups
    from swift_mega.parallel.config import ParallelConfig

    logging.getLogger("megatron").setLevel(logging.ERROR)
    groups.initialize(ParallelConfig(), seed=1)
    yield
    groups.shutdown()


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Folder of an adapter that peft has saved, its base beside it; made once, not to be changed."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = adapters.save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make
