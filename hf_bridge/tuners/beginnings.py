"""Beginnings that PEFT takes out of the base's weights, put beside them instead: PiSSA, OLoRA and their kin.

PiSSA (arXiv:2404.02948) trains W_res + s·BA, where W_res = W − s·B₀A₀ and s·B₀A₀ is the largest part of W; OLoRA
(arXiv:2406.01775) takes a part of its QR decomposition. PEFT puts W_res in the place of W; then the model without the
tuner is gone, and with another tuner it is a third model. Here W stays: −s·B₀A₀ is an adapter of its own, frozen and at
work wherever the tuner is,

    W x + s·BA x − s·B₀A₀ x.

Both are saved as the one LoRA of twice the rank that they are: [B, −B₀]·[A; A₀].
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer

START = "-start"
"""Of the name of the frozen adapter."""


def put_beside(host: PeftModel, name: str) -> None:
    """Add the frozen adapter, with what `name` is now; the base has its own weights again."""
    config = copy.copy(host.peft_config[name])
    config.init_lora_weights, config.lora_dropout, config.inference_mode = True, 0.0, True
    host.peft_config[name].init_lora_weights = True  # for the copies of it that trainers make
    host.add_adapter(name + START, config)
    layers: list[Any] = [one for one in host.modules() if isinstance(one, LoraLayer) and name in one.lora_A]
    with torch.no_grad():
        for layer in layers:
            layer.lora_A[name + START].weight.copy_(layer.lora_A[name].weight)
            layer.lora_B[name + START].weight.copy_(-layer.lora_B[name].weight)


def joined(state: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """[A; A₀] and [B, −B₀], and what is no factor as it is."""
    return {key: torch.cat([one, start[key]], _axis(key)) if _is_factor(key) else one for key, one in state.items()}


def apart(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The way back: what `joined` was given."""
    halves = {key: one.chunk(2, _axis(key)) for key, one in state.items() if _is_factor(key)}
    rest = {key: one for key, one in state.items() if key not in halves}
    return {key: one for key, (one, _) in halves.items()} | rest, {key: one for key, (_, one) in halves.items()}


def doubled(config: PeftConfig) -> PeftConfig:
    """The options of the joined one: of twice the rank, and scaled as before."""
    config = copy.copy(config)
    # rsLoRA scales with α ÷ √r.
    alpha = 2**0.5 if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, alpha * config.lora_alpha
    config.rank_pattern = {key: 2 * rank for key, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {key: alpha * value for key, value in (config.alpha_pattern or {}).items()}
    return config


def _is_factor(key: str) -> bool:
    return ".lora_A" in key or ".lora_B" in key


def _axis(key: str) -> int:
    return 0 if ".lora_A" in key else 1
