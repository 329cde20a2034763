"""PEFT's layers and models, made to ask Activation which adapters are at work.

PEFT keeps that in every layer, once for all threads. Here the class of a layer becomes a subclass of its own class in
which those attributes are asked for, so that everything else of PEFT goes on as it is; taken back, the layer is as PEFT
made it.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beginnings import START


class _Guided:
    """What a guided layer answers in the place of PEFT's own state; asked several times a layer and forward pass."""

    activation: Activation
    adapter_layer_names: tuple[str, ...]
    _modules: dict[str, Any]
    _disable_adapters: bool
    _known: tuple[frozenset[str], list[str]] = (frozenset(), [])
    """The last answer, and what it was for."""

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """PEFT calls it whenever the layer has got or lost an adapter."""
        self._known = _Guided._known
        super().set_adapter(*args, **kwargs)  # type: ignore[misc]

    def _has(self, name: str) -> bool:
        held = map(self._modules.get, self.adapter_layer_names)
        return any(name in one for one in held if one is not None)

    @property
    def active_adapters(self) -> list[str]:
        """Those of the layer that are at work; in the order of their names, so that sums come out alike."""
        at_work = self.activation.names
        known = self._known  # once: another thread may write it
        if known[0] is not at_work:
            known = self._known = (at_work, self._find(at_work))
        return known[1]

    def _find(self, at_work: frozenset[str]) -> list[str]:
        found = []
        for name in sorted(at_work):
            if self._has(name):
                found.append(name)
                if self._has(name + START):
                    found.append(name + START)
        return found

    @property
    def active_adapter(self) -> list[str]:
        return self.active_adapters

    @property
    def disable_adapters(self) -> bool:
        return self._disable_adapters or not self.active_adapters


class _GuidedWrapper(_Guided):
    """The same around a module that is trained whole, or some of whose rows are."""

    _adapters: set[str]

    def _has(self, name: str) -> bool:
        return name in self._adapters


class _GuidedModel:
    """The same for a PeftModel, and what of it was for all threads."""

    activation: Activation
    ours: set[str]
    """Names of adapters that were attached here, not by a trainer that wants a copy to compare with."""
    _last_adapter: str
    _beside: frozenset[str] = frozenset()
    peft_config: dict[str, Any]

    @property
    def active_adapter(self) -> str:
        return next((name for name in self.peft_config if name in self.activation), self._last_adapter)

    @active_adapter.setter
    def active_adapter(self, name: str) -> None:
        self._last_adapter = name

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Put `adapter_name` in the place of this model's other adapters; a trainer's copy works all by itself."""
        super().set_adapter(adapter_name, inference_mode)  # type: ignore[misc]
        self._beside = self.activation.everywhere - self.peft_config.keys() or self._beside
        starts = frozenset(name for name in self.peft_config if name.endswith(START))
        beside = self._beside if adapter_name in self.ours else starts
        self.activation.everywhere = beside | {adapter_name}

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, and in this thread, the model is what it was before any tuner."""
        with self.activation.only(()):
            yield


class _GuidedPromptModel(_GuidedModel):
    """A PeftModel that puts virtual tokens before the input."""

    base_model: Any
    _modules: dict[str, Any]

    @property
    def _idle(self) -> bool:
        return not any(name in self.activation for name in self.peft_config)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs) if self._idle else super().forward(*args, **kwargs)  # type: ignore[misc]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        if self._idle:
            return self.base_model.generate(*args, **kwargs)
        # PEFT sets a method of the base while it generates; on views of both, no other thread sees that.
        view = copy.copy(self)
        view._modules = {**self._modules, "base_model": copy.copy(self.base_model)}
        return super(_GuidedPromptModel, view).generate(*args, **kwargs)  # type: ignore[misc]


@functools.cache
def _subclass(guided: Any, original: Any) -> type:
    return type(original.__name__, (guided, original), {"__module__": original.__module__, "original": original})


def guide_layers(model: nn.Module, activation: Activation) -> None:
    """Let all PEFT layers of `model` ask `activation`."""
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not isinstance(module, _Guided):
            kind: Any = type(module)
            module.__class__ = _subclass(_Guided if isinstance(module, BaseTunerLayer) else _GuidedWrapper, kind)
            module.activation = activation


def guide_model(model: PeftModel, activation: Activation) -> None:
    """Let a PeftModel ask `activation`."""
    adapter = model.__dict__.pop("active_adapter")
    kind: Any = type(model)
    model.__class__ = _subclass(_GuidedPromptModel if model._is_prompt_learning else _GuidedModel, kind)
    model.activation, model.ours, model.active_adapter = activation, set(), adapter


def is_guided(module: nn.Module) -> bool:
    """Whether `guide_layers` had it."""
    return isinstance(module, _Guided)
