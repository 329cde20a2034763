"""LLaMA-Pro (Wu et al., "LLaMA Pro: Progressive LLaMA with Block Expansion", arXiv:2401.02415).

The L layers are cut into `num_groups` groups of M = L ÷ num_groups, and behind each group come
P = num_new_blocks ÷ num_groups new ones: copies of its last layer whose output projections (W_O of attention, W_2 of
the MLP) are zero. Such a copy φ is the identity,

    φ(x) = x + 0·Attn(x) + 0·MLP(x) = x,

so the model at first does what it did. Only the new blocks are trained.

They lie beside the model and run behind the layer that they follow: the model's own layers keep their numbers, so that
LoRA and others find and name them as before, and a block that is not at work is skipped. In the cache they come after
all others. `save_expanded` writes what the paper ends with: a plain folder of a deeper model.
"""

import copy
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.beside import Beside
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.errors import UserError

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")
"""Lists of a config in which every layer has its place."""


@dataclass(kw_only=True)
class LLaMAProConfig:
    """Options of LLaMA-Pro."""

    num_new_blocks: int = 4
    """New blocks in all; a multiple of num_groups."""

    num_groups: int | None = None
    """Groups of layers; the number of layers is a multiple of it. null: one new block a group."""


class LLaMAPro(Beside):
    """New blocks behind the groups of layers of a decoder.

    Attributes:
        order: the layers of the deeper model: paths of the base's own and of new ones below `tuner_<name>`.
    """

    def __init__(self, model: nn.Module, name: str, config: LLaMAProConfig, activation: Activation) -> None:
        layers = anatomy.layers(model)
        blocks_of = grouped(len(layers), config.num_new_blocks, config.num_groups or config.num_new_blocks)
        _check_layers(anatomy.layers_path(model), layers)
        super().__init__(model, name, config, activation)
        self._config = anatomy.text_config(model)
        self._sizes = _sizes(self._config)
        self._new_like: list[int] = []
        self.order: list[str] = []
        for number, (path, layer) in enumerate(layers.items()):
            self.order.append(path)
            for _ in range(blocks_of.get(number, 0)):
                self._add_block(layer, number, len(layers))
        self._lengthen()

    def _add_block(self, layer: nn.Module, number: int, base_layers: int) -> None:
        path, first = f"blocks.{len(self._new_like)}", True
        block = identity(layer, base_layers + len(self._new_like))
        self.add(path, block, layer)
        self.order.append(f"{self.place}.{path}")
        self._new_like.append(number)

        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not self.at_work:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
            # Blocks may be trained in fp32 in a model of fewer bits.
            mixed = next(block.parameters()).dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type)
            with torch.autocast(hidden.device.type, hidden.dtype) if mixed else nullcontext():
                # Not block(…): with gradient checkpointing this runs inside what is computed again for the layer.
                after = nn.Module.__call__(block, hidden, *args[1:], **rest)
            nonlocal first
            if first and _is_new(block):
                _check_identity(layer, hidden, after)
            first = False
            return after

        self._hooks.append(layer.register_forward_hook(run, with_kwargs=True))

    def _lengthen(self) -> None:
        """The config tells how many layers of which kind the cache has."""
        for key, value in self._sizes.items():
            more = [value[like] for like in self._new_like] if isinstance(value, list) else len(self._new_like)
            setattr(self._config, key, value + more)

    def detach(self) -> None:
        super().detach()
        for key, value in self._sizes.items():
            setattr(self._config, key, value)

    def merge(self) -> None:
        raise UserError(
            f"`{self.name}` cannot be merged: its {len(self._new_like)} new blocks are layers that the base does not"
            " have, so none of its weights could hold them.",
            "save_expanded(folder) writes the deeper model as a plain Hugging Face folder.",
        )

    def save_expanded(self, folder: Path | str) -> None:
        """Write the deeper model, which transformers loads without this package.

        Raises:
            UserError: the model has other tuners, or its config cannot say which layer has what.
        """
        config = self.expanded_config()
        with torch.device("meta"):
            deeper: Any = type(self._home)(config)
        tensors = self.expanded_tensors()
        expected = {key: tensor.shape for key, tensor in deeper.state_dict().items()}
        wrong = sorted(
            key for key in expected | tensors if key not in tensors or tensors[key].shape != expected.get(key)
        )
        if wrong:
            raise UserError(
                f"the deeper model cannot be written: {len(wrong)} of its tensors are not those that its config asks"
                f" for, the first is `{wrong[0]}`.",
                "Merge or detach other tuners first. Where there are none, the config of this family counts its"
                " layers in a way that new ones do not fit in: keep the new blocks beside the model.",
            )
        deeper.load_state_dict(tensors, assign=True)
        deeper.generation_config = getattr(self._home, "generation_config", None)
        deeper.save_pretrained(folder)

    def expanded_tensors(self) -> dict[str, torch.Tensor]:
        """The deeper model's tensors under its own names."""
        root = anatomy.layers_path(self.model)
        renamed = {f"{old}.": f"{root}.{new}." for new, old in enumerate(self.order)}
        tensors = {}
        for key, tensor in self._home.state_dict().items():
            old = next((old for old in renamed if key.startswith(old)), "")
            tensors[renamed.get(old, "") + key.removeprefix(old)] = tensor
        return tensors

    def expanded_config(self) -> Any:
        """The deeper model's config: what it says of single layers, in the order in which these run."""
        config = copy.deepcopy(self._home.config)
        inner = config.get_text_config(decoder=True)
        base = [path for path in self.order if not path.startswith(self.place)]
        # The number in the base of every layer, or of the one that it is a copy of.
        new = iter(self._new_like)
        origin = [base.index(path) if path in base else next(new) for path in self.order]
        for key, value in self._sizes.items():
            if isinstance(value, list):
                setattr(inner, key, [value[number] for number in origin])
        if hasattr(inner, "first_k_dense_replace"):
            inner.first_k_dense_replace = sum(number < inner.first_k_dense_replace for number in origin)
        if hasattr(inner, "mlp_only_layers"):
            step, dense = getattr(inner, "decoder_sparse_step", 1), inner.mlp_only_layers or []
            without = [new for new, old in enumerate(origin) if old in dense or (old + 1) % step]
            inner.mlp_only_layers, inner.decoder_sparse_step = without, 1
        return config


def grouped(layers: int, blocks: int, groups: int) -> dict[int, int]:
    """Number of the layer that ends a group → new blocks behind it.

    Raises:
        UserError: groups do not divide the layers, or the blocks.
    """
    if blocks < 1 or groups < 1 or layers % groups or blocks % groups:
        fitting = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
        raise UserError(
            f"llamapro: {layers} layers and {blocks} new blocks cannot be cut into {groups} equal groups.",
            f"num_groups must divide both; {layers} is divided by {fitting}.",
        )
    return {(group + 1) * (layers // groups) - 1: blocks // groups for group in range(groups)}


def identity(layer: nn.Module, number: int) -> nn.Module:
    """A copy of the layer that gives back what it is given, as layer `number` of the cache.

    Neither hooks nor tuners of the layer are copied.
    """
    plain: dict[int, Any] = {}
    module: Any
    for module in layer.modules():
        plain |= {id(hooks): OrderedDict() for hooks in (module._forward_hooks, module._forward_pre_hooks)}
        # One config for all layers: transformers changes it, as when it takes another attention.
        plain[id(getattr(module, "config", None))] = getattr(module, "config", None)
        if hasattr(module, "get_base_layer"):
            plain[id(module)] = copy.deepcopy(module.get_base_layer())
        elif hasattr(module, "original_module"):
            plain[id(module)] = copy.deepcopy(module.original_module)
    block = copy.deepcopy(layer, plain)
    for module in block.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = number
    outputs = [param for name, param in block.named_parameters() if _is_output(name)]
    if not outputs:
        raise UserError(
            f"llamapro: {type(layer).__name__} has no output projection under a known name.",
            f"Known: {', '.join(anatomy.OUTPUTS)}.",
        )
    for param in outputs:
        nn.init.zeros_(param)
    return block.requires_grad_(True)


def _is_new(block: nn.Module) -> bool:
    """Whether its output projections are still zero."""
    return not any(param.any() for name, param in block.named_parameters() if _is_output(name))


def _check_identity(layer: nn.Module, before: torch.Tensor, after: Any) -> None:
    after = after[0] if isinstance(after, tuple) else after
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"llamapro: a new {type(layer).__name__} is not the identity, although its output projections are zero:"
            " it adds something to its input that they do not go through.",
            f"Known output projections: {', '.join(anatomy.OUTPUTS)}. Use `adapter` or `lora`.",
        )


def _is_output(name: str) -> bool:
    return any(part.removesuffix("_bias") in anatomy.OUTPUTS for part in name.split("."))


def _sizes(config: Any) -> dict[str, Any]:
    """What a config says about the number of layers, as it is now."""
    if config is None:
        return {}
    # A list that a config makes of its other values when asked is longer by itself.
    stored = {key: vars(config).get(key) for key in PER_LAYER} | {"num_hidden_layers": config.num_hidden_layers}
    return {key: value for key, value in stored.items() if value is not None}


def _check_layers(path: str, layers: dict[str, nn.Module]) -> None:
    if path.endswith("encoder.layer"):
        raise UserError(
            "llamapro needs a decoder: an encoder's layers end with a norm, so none of their copies is the identity.",
            "Use `adapter` or `lora`.",
        )
    for layer, module in layers.items():
        for name, param in module.named_parameters():
            if not param.is_floating_point() or type(param.data) is not torch.Tensor:
                raise UserError(
                    f"llamapro trains copies of layers, and `{layer}.{name}` is quantised ({param.dtype}).",
                    "Load the model without quantisation, or use `lora`.",
                )


TUNERS = [Tuner("llamapro", LLaMAProConfig, "arXiv:2401.02415", LLaMAPro)]
