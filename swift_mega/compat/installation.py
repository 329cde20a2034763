"""Which redirections this machine needs, in which order, around the import of megatron."""

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from swift_mega.compat import optional, triton
from swift_mega.compat.redirection import CompatError, Redirection, installed_version
from swift_mega.compat.triton import WITHOUT_TRITON

HIDDEN = Redirection(
    name="TransformerEngine and apex where they do not work",
    library="megatron-core",
    why="megatron-core expects an ImportError, and broken installations raise others at import",
    names=(),
    apply=optional.hide_unusable,
    probe=optional.unusable_are_hidden,
)


def before_megatron() -> tuple[Redirection, ...]:
    """What must be in place when megatron is imported."""
    kernels = (WITHOUT_TRITON,) if triton.is_needed() else ()
    if torch.cuda.is_available():
        return (HIDDEN, *kernels)
    from swift_mega.compat.cpu_torch import REDIRECTIONS

    return (HIDDEN, *kernels, *REDIRECTIONS)


def after_megatron() -> tuple[Redirection, ...]:
    """What is replaced in megatron itself."""
    from swift_mega.compat import speed
    from swift_mega.compat.megatron import (
        WITHOUT_CUDA,
        WITHOUT_FLASH_LINEAR_ATTENTION,
        WITHOUT_FUSED_ADAM,
        WITHOUT_TRANSFORMER_ENGINE,
    )
    from swift_mega.compat.saving import synchronous_saves

    without_te = optional.transformer_engine() is not None
    without_fused_adam = without_te and optional.apex() is not None
    return (
        *(() if torch.cuda.is_available() else WITHOUT_CUDA + speed.WITHOUT_CUDA),
        *(WITHOUT_FUSED_ADAM + speed.WITHOUT_FUSED_ADAM if without_fused_adam else ()),
        *(WITHOUT_TRANSFORMER_ENGINE if without_te else ()),
        *(WITHOUT_FLASH_LINEAR_ATTENTION if importlib.util.find_spec("fla") is None else ()),
        *synchronous_saves(),
    )


@functools.cache
def install_redirections() -> tuple[Redirection, ...]:
    """Install everything once and return what was installed.

    Raises:
        CompatError: megatron was imported before, is missing, or a redirection does not fit.
    """
    if "megatron.core" in sys.modules:
        raise CompatError(
            "megatron.core was imported before swift_mega.compat.install(); it has already taken what it found.",
            "Call swift_mega.compat.install() first, then import megatron.",
        )
    if importlib.util.find_spec("megatron") is None or importlib.util.find_spec("megatron.core") is None:
        raise CompatError("megatron-core is not installed.", "pip install 'megatron-core>=0.16.1,<0.20'")
    # Said at the import of five modules, some of them later than this; `doctor` is the place for it.
    warnings.filterwarnings("ignore", message=".*(Transformer Engine|Apex).*not installed")
    first = before_megatron()
    for redirection in first:
        redirection.install()
    _import_megatron()
    second = after_megatron()
    for redirection in second:
        redirection.install()
    return first + second


def _import_megatron() -> None:
    try:
        with _uncompiled_without_cuda():
            importlib.import_module("megatron.core")
    except ImportError as error:
        raise CompatError(
            f"megatron-core {installed_version('megatron-core')} cannot be imported: {error}.",
            "Install the versions that this release was tested with (requirements/).",
        ) from error


@contextmanager
def _uncompiled_without_cuda() -> Iterator[None]:
    """megatron decorates its fusions with torch.compile at import; on a CPU they stay plain functions."""
    compile_function: Any = torch.compile
    if not torch.cuda.is_available():
        torch.compile = lambda function, *args, **kwargs: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_function
