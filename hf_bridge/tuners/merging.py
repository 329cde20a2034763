"""Tuners in the weights themselves: computed in double precision, rounded once, in a model of its own.

PEFT merges in place, in the dtype of the adapter: a bf16 one's update is rounded before the sum is, and what was there
is gone. Here each layer is copied to fp64 with all that lies in it, PEFT's own formula is computed there, and the sum
rounded to the dtype of the base. What is not changed is shared with the source, which stays as it is.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from hf_bridge.tuners.beginnings import START
from hf_bridge.tuners.tuner import Attached
from swift_mega.base.errors import UserError


@dataclass(frozen=True)
class Rounding:
    """What rounding a sum did to one tensor; distances in units in the last place (ULP) of the tensor's dtype."""

    name: str
    elements: int
    changed: int
    """Elements that are others than the base's."""
    lost: int
    """Elements that are the base's although something was added: less than half an ULP."""
    farthest_ulp: float
    """The largest distance of an element from the sum: 0.5 at most, as each is rounded once."""
    mean_ulp: float


@dataclass(frozen=True)
class Merged:
    """A model without tuners that does what the tuned one does.

    Attributes:
        model: of the class of the base; unchanged tensors are the base's own.
        rounding: of every tensor that the tuners change.
    """

    model: nn.Module
    rounding: list[Rounding] = field(default_factory=list)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """As transformers saves it."""
        saved: Any = self.model
        saved.save_pretrained(folder, **options)

    def __str__(self) -> str:
        elements, changed, lost = (
            sum(getattr(one, name) for one in self.rounding) for name in ("elements", "changed", "lost")
        )
        farthest = max((one.farthest_ulp for one in self.rounding), default=0.0)
        return (
            f"{changed} of {elements} numbers in {len(self.rounding)} tensors changed; {lost} stayed, as what was added"
            f" is less than half a unit in the last place; none is farther than {farthest:.3f} ULP from the exact sum"
        )


def merged(base: nn.Module, attached: Iterable[Attached], names: set[str]) -> Merged:
    """The model with the tuners `names` in its weights and without the others.

    Raises:
        UserError: one of them is no change of weights, or these are quantised or tied.
    """
    attached = list(attached)
    chosen = [one for one in attached if one.name in names]
    for one in chosen:
        _check(base, one, names)
    of_peft = all(hasattr(one, "host") for one in chosen)
    # Others than PEFT's merge in place: they get tensors of their own.
    shared = {id(one): one for one in (*base.parameters(), *base.buffers())} if of_peft else {}
    model, copies = copy.deepcopy((base, attached), shared)
    rounding: list[Rounding] = []
    for one in copies:
        one.let_go()
        if not hasattr(one, "host"):
            if one.name in names:
                one.merge()
            one.detach()
    _replace_layers(model, names | {name + START for name in names}, rounding)
    for attribute in ("_peft_hosts", "peft_config"):
        model.__dict__.pop(attribute, None)
    return Merged(model, rounding)


def _check(base: nn.Module, one: Attached, names: set[str]) -> None:
    if not hasattr(one, "host"):
        return
    if one.peft_config.is_prompt_learning:  # type: ignore[attr-defined]
        raise UserError(
            f"`{one.name}` cannot be merged: its virtual tokens go before every input, and no weight of the model does "
            "that.",
            "Use it beside the model, as PEFT loads it.",
        )
    uses = Counter(id(parameter) for _, parameter in base.named_parameters(remove_duplicate=False))
    for name, layer in base.named_modules():
        whole = isinstance(layer, AuxiliaryTrainingWrapper) and names & layer._adapters
        if whole or (isinstance(layer, BaseTunerLayer) and names & set(layer._all_available_adapter_names())):
            inner = layer.original_module if whole else layer.get_base_layer()
            weights = dict(inner.named_parameters(recurse=False))
            if not weights or not all(weight.is_floating_point() for weight in weights.values()):
                raise UserError(
                    f"`{one.name}` cannot be merged exactly: `{name}` is quantised, and the sum would be rounded to "
                    "its few values.",
                    "Load the model as it was before quantisation, put the saved tuner on it, and merge there.",
                )
            if tied := next((key for key, weight in weights.items() if uses[id(weight)] > 1), None):
                raise UserError(
                    f"`{one.name}` cannot be merged: `{name}.{tied}` is tied to another layer, which did not change "
                    "with it.",
                    "No single matrix does the work of both: keep the tuner beside the model.",
                )


def _replace_layers(model: nn.Module, names: set[str], rounding: list[Rounding]) -> None:
    """Every PEFT layer becomes the layer in it, with what `names` do in its weights."""
    for path, parent in list(model.named_modules()):
        for child_name, child in list(parent.named_children()):
            full = f"{path}.{child_name}".lstrip(".")
            if isinstance(child, AuxiliaryTrainingWrapper):
                setattr(parent, child_name, _saved_module(child, names, full, rounding))
            elif isinstance(child, BaseTunerLayer):
                setattr(parent, child_name, _plain_layer(child, names, full, rounding))


def _saved_module(wrapper: Any, names: set[str], path: str, rounding: list[Rounding]) -> nn.Module:
    """What was trained whole, in the dtype of what it replaces."""
    original: nn.Module = wrapper.original_module
    if not names & wrapper._adapters:
        return original
    if not hasattr(wrapper, "modules_to_save"):
        return _plain_layer(wrapper.token_adapter, names, path, rounding)
    (name,) = names & wrapper._adapters
    trained = copy.deepcopy(wrapper.modules_to_save[name]).double()
    return _rounded(original, trained, path, rounding)


def _plain_layer(layer: Any, names: set[str], path: str, rounding: list[Rounding]) -> nn.Module:
    base: nn.Module = layer.get_base_layer()
    if not any(names & set(one._all_available_adapter_names()) for one in _stack(layer)):
        return base
    exact = copy.deepcopy(layer).double()
    for one in reversed(_stack(exact)):  # the innermost is the first to see the input
        if own := [name for name in one._all_available_adapter_names() if name in names]:
            one.merge(adapter_names=own)
    return _rounded(base, exact.get_base_layer(), path, rounding)


def _stack(layer: Any) -> list[Any]:
    """Layers of PEFT in each other, the outermost first."""
    found = []
    while isinstance(layer, BaseTunerLayer):
        found.append(layer)
        layer = layer.base_layer
    return found


def _rounded(original: nn.Module, exact: nn.Module, path: str, rounding: list[Rounding]) -> nn.Module:
    """`original` with the numbers of `exact`, each rounded to its own dtype."""
    new = copy.deepcopy(original, {id(one): one for one in (*original.parameters(), *original.buffers())})
    for name, was in list(original.named_parameters()):
        wanted = exact.get_parameter(name).detach()
        if torch.equal(wanted, was.double()):
            continue
        now = wanted.to(was.dtype)
        rounding.append(_report(f"{path}.{name}", was.detach(), now, wanted))
        place, _, last = name.rpartition(".")
        setattr(new.get_submodule(place), last, nn.Parameter(now, requires_grad=was.requires_grad))
    return new


def _report(name: str, was: torch.Tensor, now: torch.Tensor, wanted: torch.Tensor) -> Rounding:
    distance = (now.double() - wanted).abs() / ulp(wanted, now.dtype)
    changed = int((now != was).sum())
    lost = int(((now == was) & (wanted != was.double())).sum())
    return Rounding(name, now.numel(), changed, lost, float(distance.max()), float(distance.mean()))


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance between neighbouring numbers of `dtype` around each of `values`, which are fp64."""
    info = torch.finfo(dtype)
    spacing = torch.ldexp(torch.full_like(values, info.eps), torch.frexp(values).exponent - 1)
    return spacing.clamp(min=info.smallest_normal * info.eps)
