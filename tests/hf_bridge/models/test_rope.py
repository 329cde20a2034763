"""Longer rotary embeddings are what the papers' formulas say, computed here in a few lines."""

from collections.abc import Callable
from math import log, pi
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from hf_bridge.models.config import LoadingConfig
from hf_bridge.models.load import load_model
from hf_bridge.models.rope import scale_rope
from swift_mega.base.errors import UserError

DIM, BASE, LENGTH = 16, 10000.0, 64
PLAIN = BASE ** (-torch.arange(0, DIM, 2) / DIM)


def embedding(folder: Path, scaling: str) -> Any:
    model = load_model(str(folder), LoadingConfig(rope_scaling=scaling)).model
    return model.model.rotary_emb, model.config


def test_linear(folder: Path) -> None:
    rope, config = embedding(folder, "linear:4")
    assert torch.allclose(rope.inv_freq, PLAIN / 4)
    assert config.max_position_embeddings == 4 * LENGTH


def test_yarn(folder: Path) -> None:
    """arXiv 2309.00071, section 3.4, with α 1 and β 32 turns, whose dimensions its code rounds outwards."""
    rope, config = embedding(folder, "yarn:4")
    low, high = (DIM * log(LENGTH / (turns * 2 * pi)) / (2 * log(BASE)) for turns in (32, 1))
    low, high = max(int(low // 1), 0), -int(-high // 1)
    ramp = ((torch.arange(DIM // 2) - low) / (high - low)).clamp(0, 1)
    assert torch.allclose(rope.inv_freq, PLAIN / 4 * ramp + PLAIN * (1 - ramp))
    assert rope.attention_scaling == pytest.approx(0.1 * log(4) + 1)
    assert config.max_position_embeddings == 4 * LENGTH


def test_dynamic(folder: Path) -> None:
    rope, _ = embedding(folder, "dynamic:2")
    for length in (LENGTH, 3 * LENGTH):
        rope(torch.zeros(1, length, DIM), torch.arange(length)[None])
        base = BASE * (2 * length / LENGTH - 1) ** (DIM / (DIM - 2))
        assert torch.allclose(rope.inv_freq, base ** (-torch.arange(0, DIM, 2) / DIM), rtol=1e-5)


def test_only_full_attention_is_scaled() -> None:
    config = AutoConfig.for_model("gemma3_text", max_position_embeddings=64)
    scale_rope(config, "linear:2")
    kinds = {name: rope["rope_type"] for name, rope in config.rope_parameters.items()}
    assert kinds == {"full_attention": "linear", "sliding_attention": "default"}


@pytest.mark.parametrize("text", ["linear", "linear:1", "linear:x", "yarn:nan", "yarn:inf", "yran:2", ""])
def test_mistakes(text: str) -> None:
    with pytest.raises(UserError, match=r"rope_scaling is"):
        scale_rope(AutoConfig.for_model("llama"), text)


def test_models_it_is_not_for(changed: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="no rotary embedding"):
        scale_rope(AutoConfig.for_model("mamba2"), "linear:2")
    scaled = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    with pytest.raises(UserError, match="scaled already"):
        load_model(str(changed(config=scaled)), LoadingConfig(rope_scaling="yarn:4"))
