"""One tiny llama with its tokenizer, wide enough for groups of 64 weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.newcomer import tiny_model

VOCABULARY = 300


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    made = tiny_model(tmp_path_factory.mktemp("models") / "llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(made)
    return made


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """`changed(weights=..., config=...)`: a copy whose tensors and config.json were edited in place."""

    def copy(weights: Callable[[dict[str, Any]], object] | None = None, config: dict[str, Any] | None = None) -> Path:
        from safetensors.torch import load_file, save_file

        made = shutil.copytree(folder, tmp_path / "changed")
        if weights is not None:
            tensors = load_file(made / "model.safetensors")
            weights(tensors)
            save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        if config is not None:
            path = made / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return made

    return copy
