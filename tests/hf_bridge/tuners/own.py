"""What the tests of our own tuners share: tiny models, the tuners with options that fit them, training without a
Trainer."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.tuner import Attached, Tuner

OPTIONS: dict[str, dict[str, Any]] = {
    "adapter": {"bottleneck": 5},
    "restuning": {"bottleneck": 5},
    "restuning-bypass": {"bottleneck": 5},
    "scedit": {"bottleneck": 5},
    "side": {},
    "llamapro": {"num_new_blocks": 4, "num_groups": 2},
}
"""The tuners that have parameters of their own."""

MODULES = {"restuning-bypass": "bypass", "q-galore": "q_galore"}


def declared(name: str) -> Tuner:
    module = importlib.import_module(f"hf_bridge.tuners.{MODULES.get(name, name)}")
    return next(tuner for tuner in module.TUNERS if tuner.name == name)


def attach(model: nn.Module, name: str, activation: Activation | None = None, **options: Any) -> Attached:
    """The tuner on the model under its own name and at work; the rest of the model is frozen."""
    tuner = declared(name)
    config = tuner.config(**{**OPTIONS.get(name, {}), **options})
    torch.manual_seed(0)
    attached = tuner.attach(model, name, config, Activation([name]) if activation is None else activation)
    model.requires_grad_(False)
    for param in attached.parameters().values():
        param.requires_grad_(True)
    return attached


def disturb(attached: Attached, seed: int = 0) -> None:
    """Other values than the ones at the start, with which most tuners do nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in attached.parameters().values():
            param.add_(0.2 * torch.randn(param.shape, generator=generator).to(param))


def load(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()


def logits(model: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, use_cache=False, **options).logits


def loss(model: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    return model(tokens, labels=tokens, use_cache=False, **options).loss


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
