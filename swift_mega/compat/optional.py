"""TransformerEngine and apex: used where they work, hidden from megatron where they do not.

megatron-core takes either by `try: import … except ImportError`. That is not enough: the bare
`transformer-engine` package raises RuntimeError ("empty meta package"), its CUDA builds raise
RuntimeError without cudnn, and PyPI's `apex` is another project of that name. Hidden, they are simply
absent to every `import`.
"""

import functools
import importlib
import importlib.util
import sys

import torch


@functools.cache
def why_not(module: str, part: str) -> str | None:
    """Why `module` cannot be used here, or None where it can. `part` is what tells the right one from a namesake."""
    if sys.modules.get(module, module) is None or importlib.util.find_spec(module) is None:
        return "not installed"
    if not torch.cuda.is_available():
        return "needs CUDA"
    try:
        importlib.import_module(f"{module}.{part}")
    except Exception as error:  # noqa: BLE001
        # The only broad except of this package: these two run native loaders and version checks at
        # import and fail with whatever those raise (RuntimeError, OSError, AttributeError, ...).
        return f"{type(error).__name__}: {error}"
    return None


def transformer_engine() -> str | None:
    """Why TransformerEngine cannot be used, or None."""
    return why_not("transformer_engine", "pytorch")


def apex() -> str | None:
    """Why NVIDIA's apex cannot be used, or None."""
    return why_not("apex", "optimizers")


def hide(module: str) -> None:
    """Make `import module` an ImportError, whatever is installed."""
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        del sys.modules[name]
    sys.modules[module] = None  # type: ignore[assignment]


def hide_unusable() -> None:
    """Hide TransformerEngine and apex where they are installed and do not work."""
    for module, reason in (("transformer_engine", transformer_engine()), ("apex", apex())):
        if reason is not None:
            hide(module)


def unusable_are_hidden() -> bool:
    """Whether megatron will see only what works."""
    return all(
        reason is None or importlib.util.find_spec(module) is None
        for module, reason in (("transformer_engine", transformer_engine()), ("apex", apex()))
    )
