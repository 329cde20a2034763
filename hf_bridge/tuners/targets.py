"""Whether a model has the modules that a tuner's options name."""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from swift_mega.base.errors import UserError, nearest

_SHORTHANDS = {"all-linear"}
_OPTIONS = ("target_modules", "modules_to_save", "feedforward_modules")


def check_targets(model: nn.Module, config: Any) -> None:
    """Every name ends the name of a module, a regular expression fits one.

    Raises:
        UserError: one does not, with the nearest names of the model's modules.
    """
    names = [name for name, _ in model.named_modules() if name]
    for option in _OPTIONS:
        wanted = getattr(config, option, None)
        if isinstance(wanted, str):
            _check_expression(option, wanted, names)
        elif wanted is not None:
            _check_ends(option, wanted, names)


def _check_expression(option: str, wanted: str, names: list[str]) -> None:
    if wanted in _SHORTHANDS:
        return
    try:
        fits = any(re.fullmatch(wanted, name) for name in names)
    except re.error as error:
        raise UserError(f"{option}={wanted!r} is no regular expression: {error}.") from error
    if not fits:
        raise UserError(f"{option}: no module's whole name fits `{wanted}`.", _nearest(wanted, names))


def _check_ends(option: str, wanted: Iterable[str], names: list[str]) -> None:
    for end in wanted:
        if end not in _SHORTHANDS and not any(name == end or name.endswith(f".{end}") for name in names):
            raise UserError(f"{option}: the model has no module `{end}`.", _nearest(end, names))


def _nearest(wanted: str, names: list[str]) -> str:
    ends = {name.rpartition(".")[2] for name in names}
    return nearest(wanted, {end for end in ends if not end.isdigit()} | (set(names) if "." in wanted else set()))
