"""Adapters of tiny models, made and saved by peft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import tiny, tiny_dense, tiny_hybrid, tiny_moe

Adapter = Callable[[str], Path]
"""Name → folder of the adapter; its base lies beside it."""

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("qwen2-tied", {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 6}),
    "every-linear": ("llama3-tied-bias", {"target_modules": "all-linear", "r": 3, "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "k_proj", "o_proj", "up_proj", "lm_head"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"o_proj": 5},
            "layers_to_transform": [0, 1, 3],
        },
    ),
    "dora": (
        "llama",
        {"target_modules": "all-linear", "r": 2, "use_dora": True, "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "bias": ("qwen3-tied", {"target_modules": ["gate_proj", "down_proj"], "r": 2, "lora_bias": True}),
    "in-one": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "r": 2}),
    "gated": ("qwen3-next", {"target_modules": ["q_proj", "v_proj", "o_proj", "out_proj"], "r": 2}),
    "latent": ("deepseek_v3", {"target_modules": ["q_b_proj", "kv_b_proj", "o_proj", "down_proj"], "r": 2}),
    "experts": ("qwen3_moe", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"], "r": 2}),
    "experts-interleaved": (
        "gpt_oss",
        {"target_modules": ["o_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "r": 2},
    ),
}
"""Name → (tiny model, what peft is told)."""


def save(name: str, folder: Path) -> Path:
    """Make the base and the adapter `name` under `folder`."""
    model, options = ADAPTERS[name]
    return adapt(tiny.save(tiny_name(model), folder / "base"), folder / "adapter", **options)


def adapt(base: Path, folder: Path, **options: Any) -> Path:
    """Make an adapter of `base`, none of whose factors are zero."""
    import peft
    import torch
    import transformers

    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def tiny_name(model: str) -> str:
    """The tiny model of this name, or the first of this family."""
    known = tiny.TINY | tiny_dense.MODELS | tiny_hybrid.MODELS | tiny_moe.MODELS
    return model if model in known else next(name for name, (family, _) in known.items() if family == model)
