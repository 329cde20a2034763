"""A tuner's parameters elsewhere for a while: the objects stay, so that optimizers and modules know them still."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Offloaded:
    """Parameters that are away.

    Args:
        parameters: by name.
        to: `cpu`, or `meta`: their numbers then are in a temporary file only.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], to: Literal["cpu", "meta"]) -> None:
        self._parameters = dict(parameters)
        self._devices = {name: parameter.device for name, parameter in parameters.items()}
        self._folder = tempfile.TemporaryDirectory(prefix="tuner-") if to == "meta" else None
        if self._folder is not None:
            state = {name: parameter.detach().contiguous() for name, parameter in parameters.items()}
            save_file(state, self._file(self._folder))
        for parameter in self._parameters.values():
            _become(parameter, parameter.detach().to(to))

    def back(self) -> None:
        """Every parameter has its numbers on its device again, bit for bit."""
        state = {name: parameter.detach() for name, parameter in self._parameters.items()}
        if self._folder is not None:
            state = load_file(self._file(self._folder))
            self._folder.cleanup()
        for name, parameter in self._parameters.items():
            _become(parameter, state[name].to(self._devices[name]))

    @staticmethod
    def _file(folder: "tempfile.TemporaryDirectory[str]") -> Path:
        return Path(folder.name) / "parameters.safetensors"


def _become(parameter: nn.Parameter, data: torch.Tensor) -> None:
    """Another tensor in the place of its own, which `.data` would only take on the same kind of device."""
    new = nn.Parameter(data, requires_grad=parameter.requires_grad)
    torch.utils.swap_tensors(parameter, new)  # type: ignore[no-untyped-call]
