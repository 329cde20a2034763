"""Tuners whose parameters lie beside the model's own, and which hooks put to work."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.tuner import Attached
from swift_mega.base.errors import UserError


class Beside(Attached):
    """What is new is one submodule of the model, `tuner_<name>`; nothing of the model itself is changed.

    So the names of its tensors stay, other tuners find it as they know it, and to detach is to take the submodule
    and the hooks away.

    Attributes:
        activation: which tuners are at work; every hook asks it.
        parts: the new modules, under the paths of those that they belong to.
    """

    def __init__(self, model: nn.Module, name: str, config: Any, activation: Activation) -> None:
        super().__init__(model, name, config)
        self.activation, self.parts = activation, nn.Module()
        self._hooks: list[Any] = []
        # Kept from the start: another tuner may wrap the modules that they are in.
        self._trained: dict[str, nn.Parameter] = {}
        self._home = anatomy.plain(model)
        if hasattr(self._home, self.place):
            raise UserError(f"the model already has a tuner `{name}`.", "Give the second one another name.")
        self._home.add_module(self.place, self.parts)

    @property
    def place(self) -> str:
        return f"tuner_{self.name}"

    @property
    def at_work(self) -> bool:
        """For the thread that asks."""
        return self.name in self.activation

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._trained)

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        delattr(self._home, self.place)

    def add(self, path: str, part: nn.Module, near: nn.Module) -> None:
        """A new part under `path`, on the device of the module `near`; in fp32 as PEFT's are, if it is made anew."""
        *above, last = path.split(".")
        parent = self.parts
        for name in above:
            if name not in parent._modules:
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, part.to(device=device_of(near)))
        self._trained |= {f"{path}.{name}": param for name, param in part.named_parameters()}

    def before(self, module: nn.Module, change: Callable[[Any], Any]) -> None:
        """Where at work, the module gets `change(hidden)` for its hidden states; None leaves them."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed = change(input_of(args, kwargs)) if self.at_work else None
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

        self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, change: Callable[..., Any]) -> None:
        """Where at work, `change(result, given)` becomes what the module gives back for `given`; None leaves it."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not self.at_work:
                return None
            result = output[0] if isinstance(output, tuple) else output
            changed = change(result, input_of(args, kwargs))
            return (changed, *output[1:]) if isinstance(output, tuple) and changed is not None else changed

        self._hooks.append(module.register_forward_hook(hook, with_kwargs=True))


class PerThread(threading.local):
    """Attributes of the forward pass that a thread is in; a copy has none of them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "PerThread":
        return PerThread()


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The hidden states that a module is given, which transformers passes either way."""
    return args[0] if args else kwargs["hidden_states"]


def device_of(module: nn.Module) -> torch.device:
    """Where the module's weights are; the CPU for one without any."""
    return next((param.device for param in module.parameters()), torch.device("cpu"))
