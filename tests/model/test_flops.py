"""FLOPs against an independent count: torch's own counter on transformers' model."""

from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from converters.family import family_of
from swift_mega.model.flops import flops_per_token
from tests.support import tiny, tiny_dense, tiny_moe

LENGTH, BATCH = 16, 3
KNOWN = tiny.TINY | tiny_dense.MODELS | tiny_moe.MODELS


def first(family: str) -> str:
    return next(name for name, (own, _) in KNOWN.items() if own == family)


def ours(config: dict[str, Any], length: int = LENGTH) -> float:
    family = family_of(config)
    return flops_per_token(family, family.megatron_arguments(config), length)


LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    "name", ["llama", "qwen2-tied", *map(first, ("qwen3_moe", "mixtral", "deepseek_v3", "qwen2_moe"))]
)
def test_equal_to_what_torch_counts(name: str) -> None:
    model_type, changes = KNOWN[name]
    config = transformers.AutoConfig.for_model(model_type, **{**tiny.COMMON, **changes})
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )
    tokens = torch.randint(config.vocab_size, (BATCH, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()

    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    key, value = (config.qk_head_dim, config.v_head_dim) if "kv_lora_rank" in config.to_dict() else (head, head)
    # torch multiplies the whole square of scores; we count the causal half of it, diagonal included.
    masked = (LENGTH - (LENGTH + 1) / 2) * 2 * heads * (key + value) * config.num_hidden_layers
    # The logits' sum is a product of nobody's, and RoPE's angles are one of positions and frequencies, once.
    angles = 2 * LENGTH * (getattr(config, "qk_rope_head_dim", None) or head) // 2
    expected = BATCH * LENGTH * (ours({**config.to_dict(), "architectures": [type(model).__name__]}) + 3 * masked)
    assert counter.get_total_flops() == pytest.approx(expected, abs=BATCH * angles + 1)


def test_a_window_counts_what_it_sees() -> None:
    def mistral(window: int | None) -> float:
        return ours(LLAMA_1B | {"architectures": ["MistralForCausalLM"], "sliding_window": window}, 5)

    per_pair = 3 * 4 * 32 * 64
    # 5 positions see 1+2+3+4+5 tokens without a window and 1+2+3+3+3 with one of three tokens.
    assert mistral(None) - mistral(3) == pytest.approx(16 * per_pair * (15 - 12) / 5)
    assert mistral(99) == mistral(None)


def test_a_known_model() -> None:
    """Llama-3.2-1B: 1.236 G parameters in matrices, logits included; 6 of them per token, and attention."""
    assert ours(LLAMA_1B, 1) == pytest.approx(6 * 1.2358e9, rel=1e-3)
    assert ours(LLAMA_1B, 4096) == pytest.approx(6 * 1.2358e9 + 3 * 16 * 4 * 2048 * 2048.5, rel=1e-3)
