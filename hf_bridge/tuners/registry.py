"""Every tuner by name. Torch-free: a tuner's module is imported when the tuner is asked for."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from swift_mega.base.errors import UserError, nearest

if TYPE_CHECKING:
    from hf_bridge.tuners.tuner import Tuner

MODULES = {
    "lora": "peft_tuners",
    "dora": "peft_tuners",
    "rslora": "peft_tuners",
    "lora+": "lora_plus",
    "pissa": "peft_tuners",
    "olora": "peft_tuners",
    "loftq": "peft_tuners",
    "adalora": "peft_tuners",
    "ia3": "peft_tuners",
    "boft": "peft_tuners",
    "vera": "peft_tuners",
    "fourierft": "peft_tuners",
    "loha": "peft_tuners",
    "lokr": "peft_tuners",
    "prompt": "peft_tuners",
    "prefix": "peft_tuners",
    "p-tuning": "peft_tuners",
    "full": "full",
    "llamapro": "llamapro",
    "lisa": "lisa",
    "longlora": "longlora",
    "galore": "galore",
    "q-galore": "q_galore",
    "restuning": "restuning",
    "restuning-bypass": "bypass",
    "scedit": "scedit",
    "adapter": "adapter",
    "side": "side",
    "neftune": "neftune",
    "unsloth": "unsloth",
}
"""Name → the module of this package whose list TUNERS declares it."""


def tuner(name: str) -> "Tuner":
    """The declaration of a tuner.

    Raises:
        UserError: there is none of that name; the nearest one is told.
    """
    if name not in MODULES:
        raise UserError(f"There is no tuner `{name}`.", nearest(name, MODULES))
    declared: list[Tuner] = import_module(f"{__package__}.{MODULES[name]}").TUNERS
    return next(one for one in declared if one.name == name)


def tuner_of(config: Any) -> "Tuner":
    """The kind of tuner that has options of this class.

    Raises:
        UserError: none has.
    """
    # Whose config somebody has made is imported already; PEFT's configs are the exception.
    modules = {f"{__package__}.{module}" for module in MODULES.values()}
    if any(base.__module__.startswith("peft.") for base in type(config).__mro__):
        import_module(f"{__package__}.peft_tuners")
    imported = sorted(modules & sys.modules.keys())
    declared: list[Tuner] = [one for module in imported for one in sys.modules[module].TUNERS]
    for base in type(config).__mro__:
        if found := next((one for one in declared if one.config is base), None):
            return found
    raise UserError(
        f"{type(config).__name__} is no tuner's config.",
        "Give a config of PEFT, such as peft.LoraConfig, or of hf_bridge.tuners, such as LLaMAProConfig.",
    )
