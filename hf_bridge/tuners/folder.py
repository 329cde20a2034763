"""A tuner that PEFT has not, on disk: `tuner.json` with its kind and options, `tuner.safetensors` with the rest."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from swift_mega.base.errors import UserError

CONFIG = "tuner.json"
WEIGHTS = "tuner.safetensors"


def save_parameters(folder: Path, config: Any, parameters: Mapping[str, torch.Tensor]) -> None:
    """Write both files; the kind of tuner is told by its config's class."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = f"{type(config).__module__}:{type(config).__qualname__}"
    content = {"config_class": kind, "config": dataclasses.asdict(config)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    save_file({name: tensor.detach().contiguous() for name, tensor in parameters.items()}, folder / WEIGHTS)


def load_parameters(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Put what `save_parameters` wrote into `parameters`.

    Raises:
        UserError: other names or shapes.
    """
    saved = load_file(folder / WEIGHTS)
    check_fit(folder / WEIGHTS, saved, parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def check_fit(file: Path, saved: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors of another tuner or another model, naming the first that does not fit.

    Raises:
        UserError: other names or shapes.
    """
    fix = "It was made for another model, or for other modules of it."
    if missing := sorted(own.keys() - saved.keys()):
        raise UserError(f"{file} lacks {len(missing)} of {len(own)} tensors, the first is `{missing[0]}`.", fix)
    if unknown := sorted(saved.keys() - own.keys()):
        raise UserError(f"{file} has {len(unknown)} tensors without a place in this model, `{unknown[0]}`.", fix)
    for name, tensor in saved.items():
        if tensor.shape != own[name].shape:
            shapes = f"{list(tensor.shape)}, here it would be {list(own[name].shape)}"
            raise UserError(f"{file}: `{name}` is {shapes}.", fix)
