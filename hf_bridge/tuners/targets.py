"""Whether a model has the modules that a tuner's options name."""

import re
from collections.abc import Iterable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers.pytorch_utils import Conv1D

from swift_mega.base.errors import UserError, nearest

ALL_LINEAR = "all-linear"
"""Every linear layer of the model but its head."""
FUSED = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
"""Model types whose kernels read the weight of `out_proj` past the layer, so that nothing can be added to it."""
IN_TUNERS = re.compile(r"(.*\.)?tuner_.*")
"""Modules that another tuner has put beside the model's own."""
_OPTIONS = ("target_modules", "modules_to_save", "feedforward_modules")


def check_targets(model: nn.Module, config: Any) -> None:
    """Every name ends the name of a module, a regular expression fits one.

    Raises:
        UserError: one does not, with the nearest names of the model's modules.
    """
    names = [name for name in names_of(model) if not IN_TUNERS.fullmatch(name)]
    for option in _OPTIONS:
        wanted = getattr(config, option, None)
        if isinstance(wanted, str):
            _check_expression(option, wanted, names)
        elif wanted is not None:
            _check_ends(option, wanted, names)


def names_of(model: nn.Module) -> list[str]:
    """The names of all modules below the model."""
    return [name for name, _ in model.named_modules() if name]


def linear_names(model: nn.Module) -> list[str]:
    """The names behind `all-linear`, in the order of the model.

    Quantised layers, which PEFT's own search may not see, are among them; other tuners' layers are not, nor are those
    that a Mamba layer's kernels do not call.
    """
    known: Any = model
    head = known.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    fused = getattr(getattr(model, "config", None), "model_type", None) in FUSED
    heads = {head, *(getattr(model, name, None) for name in SEQ_CLS_HEAD_NAMES)} if hasattr(model, "config") else {None}
    names: list[str] = []
    within = ""
    for name, module in model.named_modules():
        if (within and name.startswith(within)) or IN_TUNERS.fullmatch(name) or module in heads:
            continue
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(module, BaseTunerLayer):
            within = f"{name}."
        if _is_linear(base) and not (fused and name.endswith(".out_proj")):
            names.append(name)
    return names


def _is_linear(module: nn.Module) -> bool:
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return isinstance(module, Conv1D) or (all(isinstance(size, int) for size in sizes) and not any(module.children()))


def _check_expression(option: str, wanted: str, names: list[str]) -> None:
    if wanted == ALL_LINEAR:
        return
    try:
        fits = any(re.fullmatch(wanted, name) for name in names)
    except re.error as error:
        raise UserError(f"{option}={wanted!r} is no regular expression: {error}.") from error
    if not fits:
        raise UserError(f"{option}: no module's whole name fits `{wanted}`.", _nearest(wanted, names))


def _check_ends(option: str, wanted: Iterable[str], names: list[str]) -> None:
    for end in wanted:
        if end != ALL_LINEAR and not any(name == end or name.endswith(f".{end}") for name in names):
            raise UserError(f"{option}: the model has no module `{end}`.", _nearest(end, names))


def _nearest(wanted: str, names: list[str]) -> str:
    ends = {name.rpartition(".")[2] for name in names}
    return nearest(wanted, {end for end in ends if not end.isdigit()} | (set(names) if "." in wanted else set()))
