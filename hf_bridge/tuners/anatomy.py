"""Where the parts of a model are that tuners act on: decoder layers, what is in them, and what is around them."""

from typing import Any

from torch import nn

from swift_mega.base.errors import UserError, nearest

LAYERS = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "model.decoder.layers",
    "transformer.h",
    "transformer.blocks",
    "transformer.encoder.layers",
    "gpt_neox.layers",
    "backbone.layers",
    "bert.encoder.layer",
    "roberta.encoder.layer",
    "language_model.layers",
    "decoder.layers",
    "encoder.layer",
    "layers",
    "blocks",
    "h",
)
"""Paths at which models keep the list of their layers; the first that is there counts."""

FINAL_NORM = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f", "final_norm")
"""What the norm after the last layer is called, beside the list of layers."""

ATTENTION = ("self_attn", "self_attention", "attention", "attn", "linear_attn", "mixer", "temporal_block")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "mlp_block")
"""What the two halves of a layer are called."""

OUTPUTS = ("o_proj", "out_proj", "down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2", "dense", "o_lin")
"""Modules or parameters whose product is what a layer adds to its input."""


def plain(model: Any) -> Any:
    """The model itself, where PEFT has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layers_path(model: nn.Module) -> str:
    """The path of the list of layers, as in `model.layers`.

    Raises:
        UserError: there is none where models are known to keep it.
    """
    for path in LAYERS:
        found: Any = plain(model)
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList | nn.Sequential) and len(found):
            return path
    raise UserError(
        f"no list of layers was found in {type(plain(model)).__name__}: it is at none of {', '.join(LAYERS)}.",
        "A tuner that acts on named modules (`lora`, `adapter` with target_modules) needs no such list.",
    )


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path → layer, in the order in which they are applied."""
    path = layers_path(model)
    return {f"{path}.{i}": layer for i, layer in enumerate(plain(model).get_submodule(path))}


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last layer and the head."""
    path = layers_path(model).rpartition(".")[0]
    beside = plain(model).get_submodule(path)
    for name in FINAL_NORM:
        if isinstance(getattr(beside, name, None), nn.Module):
            return getattr(beside, name)  # type: ignore[no-any-return]
    raise UserError(
        f"no final norm was found in {type(plain(model)).__name__}: `{path}` has none of {', '.join(FINAL_NORM)}.",
        "Use a tuner that acts inside the layers, such as `restuning` or `adapter`.",
    )


def embeddings(model: nn.Module) -> nn.Module:
    """The module that turns token ids into vectors."""
    inner = plain(model)
    if hasattr(inner, "get_input_embeddings"):
        return inner.get_input_embeddings()  # type: ignore[no-any-return]
    found = next((module for module in inner.modules() if isinstance(module, nn.Embedding)), None)
    if found is None:
        raise UserError(f"{type(inner).__name__} has no embedding of tokens.", "Use a tuner that needs none.")
    return found


def text_config(model: nn.Module) -> Any:
    """transformers' config of the part that has the layers; None for a model that is not of transformers."""
    config: Any = getattr(plain(model), "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def width(model: nn.Module) -> int:
    """Numbers in a hidden state."""
    config = text_config(model)
    for name in ("hidden_size", "n_embd", "d_model", "dim"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    weights: Any = embeddings(model).weight
    return int(weights.shape[-1])


def sublayers(model: nn.Module) -> dict[str, nn.Module]:
    """Path → attention or MLP, of every layer."""
    found = {
        f"{path}.{name}": child
        for path, layer in layers(model).items()
        for name, child in layer.named_children()
        if name in ATTENTION + MLP
    }
    if not found:
        raise UserError(
            f"the layers of {type(plain(model)).__name__} have neither attention nor MLP under a known name"
            f" ({', '.join(ATTENTION + MLP)}).",
            "Name the modules with target_modules.",
        )
    return found


def targets(model: nn.Module, ends: list[str]) -> dict[str, nn.Module]:
    """Path → module, of those whose path ends in one of `ends`.

    Raises:
        UserError: one of them fits nothing.
    """
    named = {path: module for path, module in plain(model).named_modules() if path}
    for end in ends:
        if not any(_ends(path, end) for path in named):
            raise UserError(
                f"target_modules: no module is called `{end}`.", nearest(end, {path.split(".")[-1] for path in named})
            )
    return {path: module for path, module in named.items() if any(_ends(path, end) for end in ends)}


def _ends(path: str, end: str) -> bool:
    return f".{path}".endswith(f".{end}")
