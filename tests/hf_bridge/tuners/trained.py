"""Tuners as if they had been trained: with other numbers than they begin with."""

from typing import Any

import torch

from hf_bridge.tuners.registry import tuner
from hf_bridge.tuners.tuned import TunedModel, prepare_model

SMALL: dict[str, dict[str, Any]] = {
    "boft": {"boft_block_size": 4},
    "fourierft": {"n_frequency": 20},
    "vera": {"target_modules": ["q_proj", "o_proj"], "r": 16},
    "prompt": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3},
}
"""Options that fit a model of 32 channels."""

PLAIN_LORA = ["lora", "dora", "rslora", "lora+", "pissa", "olora"]
OTHERS = ["adalora", "ia3", "boft", "vera", "fourierft", "loha", "lokr"]
PROMPTS = ["prompt", "prefix", "p-tuning"]
OF_PEFT = [*PLAIN_LORA, *OTHERS, *PROMPTS]


def config_of(kind: str, **options: Any) -> Any:
    return tuner(kind).config(**{**tuner(kind).defaults, **SMALL.get(kind, {}), **options})


def move(tuned: TunedModel, name: str, seed: int = 0) -> None:
    """Other numbers in what a tuner trains, always the same ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.attached[name].parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def tuned_with(model: Any, **kinds: str) -> TunedModel:
    """Name = kind; moved, and none at work."""
    torch.manual_seed(0)
    tuned = prepare_model(model, {name: config_of(kind) for name, kind in kinds.items()}, active=[])
    for seed, name in enumerate(kinds):
        move(tuned, name, seed)
    return tuned


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[B, S, V]"""
    found: torch.Tensor = model(input_ids=ids).logits
    return found
