"""From the words of the command line to configs: `lora+llamapro`, `--rank 16`, `--tuner-options use_dora=true`."""

import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgspec

from hf_bridge.tuners.config import TuningConfig
from hf_bridge.tuners.registry import MODULES, tuner
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.config import allowed
from swift_mega.base.errors import UserError, nearest

_FIELDS = {
    "target_modules": ("target_modules",),
    "modules_to_save": ("modules_to_save",),
    "rank": ("target_r", "r", "rank"),
    "alpha": ("lora_alpha", "alpha"),
    "dropout": ("lora_dropout", "vera_dropout", "boft_dropout", "dropout"),
    "freeze": ("freeze",),
    "train_only": ("train_only",),
}
"""Option of all tuners → the names that it has in their configs."""


def tuners_of(text: str, options: TuningConfig) -> dict[str, Any]:
    """What `prepare_model` takes, for the words of a command line.

    The first tuner that is PEFT's is named `default`, as PEFT names it and TRL's trainers look for it; the others have
    their own names.

    Args:
        text: names of tuners, joined by `+`.
        options: those given for all of them; every one must be an option of one of them at least.

    Raises:
        UserError: an unknown tuner or option, or a value that the config refuses.
    """
    kinds = [tuner(name) for name in _split(text)]
    _check_options(kinds, options)
    configs: dict[str, Any] = {}
    for kind in kinds:
        of_peft = any(base.__module__.startswith("peft.") for base in kind.config.__mro__)
        name = "default" if of_peft and "default" not in configs else kind.name
        configs[name.replace("+", "-plus")] = _config(kind, options)
    return configs


def in_cache(text: str) -> str | None:
    """The first of the tuners on the command line that gradient checkpointing would turn off; None: none."""
    return next((name for name in _split(text) if tuner(name).in_cache), None)


def _split(text: str) -> list[str]:
    """`lora++ia3`: `lora+` and `ia3`, as no name is empty; the longest known name goes first."""
    names, rest = [], text
    while rest:
        known = [name for name in MODULES if rest == name or rest.startswith(f"{name}+")]
        name = max(known, key=len, default=rest.partition("+")[0])
        names.append(tuner(name).name)
        rest = rest[len(name) + 1 :]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"--tuner {text!r} is no list of different tuners.", f"Join some of {', '.join(MODULES)} by `+`."
        )
    return names


def _given(options: TuningConfig) -> dict[str, Any]:
    """Those of the options for all tuners that were given."""
    values = {name: getattr(options, name) for name in _FIELDS}
    return {name: value for name, value in values.items() if value not in (None, [])}


def _own(kind: Tuner) -> set[str]:
    return {field.name for field in fields(kind.config) if field.init}


def _check_options(kinds: list[Tuner], options: TuningConfig) -> None:
    known = {name for kind in kinds for name in _own(kind)}
    names = " + ".join(kind.name for kind in kinds)
    for name in _given(options):
        if not known & set(_FIELDS[name]):
            raise UserError(
                f"`{names}` has no `{name}`.", f"Leave it out; its own options are {', '.join(sorted(known))}."
            )
    if options.rank is not None and options.rank < 1:
        raise UserError(
            f"`--rank` is {options.rank}, which leaves `{names}` nothing to train.", "It must be at least 1."
        )
    for name in options.tuner_options:
        if name not in known:
            raise UserError(f"`{names}` has no option `{name}`.", nearest(name, known))


def _config(kind: Tuner, options: TuningConfig) -> Any:
    own = _own(kind)
    values: dict[str, Any] = {name: _copied(value) for name, value in kind.defaults.items()}
    for name, value in _given(options).items():
        if field := next((one for one in _FIELDS[name] if one in own), None):
            values[field] = _targets(value) if name == "target_modules" else value
            if field == "target_r":
                values["init_r"] = -(-3 * value // 2)  # AdaLoRA begins with 1.5 times the rank that it ends with
    values |= {name: _typed(kind, name, value) for name, value in options.tuner_options.items() if name in own}
    try:
        return kind.config(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"`{kind.name}` refuses its options: {error}", f"They are {_shown(values)}.") from error


def _typed(kind: Tuner, name: str, value: Any) -> Any:
    """The value of the tuner's own option: dataclasses take any, and to them the text `maybe` is a switch turned on.

    Raises:
        UserError: its type is none that the config's annotation has.
    """
    hint = typing.get_type_hints(kind.config)[name]
    default = next(field.default for field in fields(kind.config) if field.name == name)
    error = None
    # The command line has read `none` as null, and it is PEFT's own word in `bias`.
    for one in (value, "none") if value is None and default is not None else (value,):
        try:
            if one is not default:
                msgspec.convert(one, hint)
            return one
        except msgspec.ValidationError as wrong:
            error = wrong
        except TypeError:  # a union that msgspec cannot tell apart, as of text and an enumeration: PEFT checks those
            return value
    shown = "null" if value is None else repr(value)
    raise UserError(f"`{kind.name}`: the option `{name}` is {shown}.", allowed(hint)) from error


def _targets(given: list[str]) -> Any:
    """PEFT takes names in a list, but a shorthand or a regular expression by itself."""
    alone = len(given) == 1 and (given[0] == "all-linear" or not given[0].replace(".", "").replace("_", "").isalnum())
    return given[0] if alone else list(given)


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())
