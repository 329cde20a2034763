"""The linear layers of a model that tuners and quantisation are for: all but its head."""

from collections.abc import Callable
from typing import Any

from torch import nn


def linear_names(model: Any) -> list[str]:
    """The name of each linear layer but the head, which turns the last hidden state into an answer.

    Quantised ones are among them. PEFT's `all-linear` does not see those that are no `nn.Linear` (HQQ, GPTQ, AWQ).

    Args:
        model: of transformers.
    """
    inside = body(model)
    return [name for name, module in model.named_modules() if name.startswith(inside) and is_linear(module)]


def body(model: Any) -> str:
    """How the names of all that is in a model but its head begin: `model.`, say.

    It is where the embeddings are. `base_model_prefix` is not it everywhere: Llama 4 has `language_model` there.
    """
    embeddings = model.get_input_embeddings()
    return next(f"{name}." for name, child in model.named_children() if embeddings in child.modules())


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, of torch or of a library that quantises."""
    if isinstance(module, nn.Linear):
        return True
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and not any(module.children())


def replace_linears(model: Any, make: Callable[[Any], nn.Module]) -> None:
    """Put what `make` makes of each in its place."""
    for name in linear_names(model):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(model.get_submodule(name)))
