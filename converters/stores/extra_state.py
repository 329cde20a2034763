"""The objects by which a checkpoint tells TransformerEngine's layers that they have never computed in fp8.

Such a layer loads strictly only if its `_extra_state` is there. Which modules have one is TransformerEngine's affair;
the pattern here gives megatron-core 0.16.1's keys for every family of the toolkit.
"""

import itertools
import re
from collections.abc import Iterator, Mapping

from converters.stores import torch_zip
from converters.tensors import TensorSpec

STATEFUL = re.compile(
    r"(decoder|mtp)\.(.*\.)?"
    r"(linear_\w+|fc\d_latent_proj|\w*layernorm|final_norm|in_proj|out_proj|out_norm|core_attention|eh_proj|enorm|hnorm)"
)
"""Linear layers and norms of TransformerEngine, and an attention that has a parameter; no router, no embedding."""

MTP_ATTENTION = re.compile(r"mtp\..*\.self_attention\.linear_proj")
"""An MTP layer's attention has a state, too, though it has no parameter."""

MAMBA_NORM = "decoder.final_norm.weight"
"""What only megatron-core's MambaModel has; its output layer has a state, which that of the GPT model keeps back."""


def extra_states(tensors: Mapping[str, TensorSpec]) -> dict[str, bytes]:
    """Object key → content, for every module that has tensors here; one for each layer and expert.

    Args:
        tensors: torch_dist key → global shape, stacked axes first.
    """
    modules: dict[str, TensorSpec] = {}
    for key, spec in tensors.items():
        module = key.rpartition(".weight.")[0] or key.rpartition(".")[0]  # `in_proj.weight.query` is of `in_proj`
        if STATEFUL.fullmatch(module):
            modules.setdefault(module, spec)
        if MTP_ATTENTION.fullmatch(module):
            modules.setdefault(module.replace("linear_proj", "core_attention"), TensorSpec((), spec.dtype))
        if key == MAMBA_NORM:
            modules.setdefault("output_layer", TensorSpec((), spec.dtype))
    content = _never_computed_in_fp8()
    return {key: content for module, spec in modules.items() for key in _shards(module, spec)}


def _shards(module: str, spec: TensorSpec) -> Iterator[str]:
    stacked = module.startswith("decoder.layers.") and not module.split(".")[2].isdigit()
    leading = spec.shape[: stacked + (".experts.experts." in module)]
    for index in itertools.product(*map(range, leading)):
        where = ".".join(map(str, index or (0,))), ".".join(map(str, leading or (1,)))
        yield f"{module}._extra_state/shard_{where[0]}_{where[1]}"


def _never_computed_in_fp8() -> bytes:
    """A list with an empty tensor, as megatron-core wraps what the layer gives it."""
    return b"".join(torch_zip.frame(TensorSpec((0,), "uint8"), wrapped=True))
