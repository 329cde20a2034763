"""Hugging Face weights into a Megatron model and back, in memory, every rank its own slices.

A model says itself what it holds: megatron's `sharded_state_dict` gives, for each piece of each
parameter on this rank, the canonical name of the whole tensor and the box that the piece is. A
`MegatronView` answers for any box of any canonical tensor of a Hugging Face folder. So no rank reads
or writes more than it holds, and there is no second description of the layout.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import unwrap_model
from torch import Tensor

from converters import checkpoint
from converters.family import family_of
from converters.rules import MTP_LAYERS
from converters.stores import quantised, safetensors
from converters.tensors import TensorSpec
from converters.torch_tensors import dtype_name, to_carrier, to_torch
from converters.view import MegatronView, hf_tensors
from swift_mega.base.console import Progress, progress
from swift_mega.base.errors import UserError
from swift_mega.parallel.agree import on_main


class Piece(NamedTuple):
    """A part of a canonical tensor that this rank holds."""

    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    """Like `offset` with the layer axis where layers are stacked."""
    whole: tuple[int, ...]
    """Shape of the whole canonical tensor."""
    data: Tensor
    """A window on the parameter, without the layer axis."""
    main: bool
    """Whether this rank is the one of its replicas that writes."""


def pieces(chunks: list[MegatronModule]) -> Iterator[Piece]:
    """What this rank holds of the model, each element of each parameter once."""
    for chunk in chunks:
        state = unwrap_model(chunk).sharded_state_dict()
        apply_factories(state)
        for value in nested_values(state):
            if isinstance(value, ShardedTensor):
                shape = (1,) * value.prepend_axis_num + tuple(value.local_shape)
                main = is_main_replica(value.replica_id)
                yield Piece(value.key, tuple(value.global_offset), shape, tuple(value.global_shape), value.data, main)


def load_hf(chunks: list[MegatronModule], hf_folder: Path, *, without_mtp: bool = False) -> None:
    """Fill the model from a Hugging Face folder, cast to the model's dtype.

    Before the optimizer is made: it copies its fp32 master weights then. `without_mtp` leaves out the layers
    that predict further tokens, as a model has none.

    Raises:
        UserError: weights that are missing, truncated, of another shape, or that no parameter takes.
    """
    config = checkpoint.read_config(hf_folder)
    store = quantised.open_weights(hf_folder, config)
    view = MegatronView(family_of(config), config, store, padded_vocab_size(chunks))
    if without_mtp:
        view.tensors = {key: spec for key, spec in view.tensors.items() if not key.startswith(MTP_LAYERS)}
    held = list(pieces(chunks))
    _check_complete(chunks, held, view)
    with torch.no_grad(), _bytes_bar(held, "reading weights") as bar:
        for piece in held:
            box = to_torch(view.read(piece.key, piece.offset, piece.shape), view.tensors[piece.key].dtype)
            piece.data.copy_(box.reshape(piece.data.shape))
            bar.update(piece.data.nbytes)
    store.close()


def save_hf(chunks: list[MegatronModule], hf_folder: Path, source_hf: Path) -> None:
    """Write the model as a Hugging Face folder in its own dtype, all ranks at once into shared files.

    Args:
        chunks: the model.
        hf_folder: to write; on a file system that all ranks see. Files carry their final names only when all
            ranks have written.
        source_hf: where config, tokenizer and chat template come from.

    Raises:
        UserError: on every rank, if the disk is full or the model is not the one of `source_hf`.
    """
    config = checkpoint.read_config(source_hf)
    family = family_of(config)
    held = list(pieces(chunks))
    dtypes = {key: dtype_name(dtype) for key, dtype in _gather({piece.key: piece.data.dtype for piece in held}).items()}
    tensors = hf_tensors(family, family.megatron_arguments(config), dtypes)
    on_main(lambda: safetensors.create(hf_folder, tensors).close())
    store = safetensors.attach(hf_folder)
    view = MegatronView(family, config, store, padded_vocab_size(chunks))
    _check_complete(chunks, held, view)
    with _bytes_bar(held, "writing weights") as bar:
        for piece in held:
            if piece.main:
                view.write(piece.key, piece.offset, to_carrier(piece.data.detach().cpu()).reshape(piece.shape))
            bar.update(piece.data.nbytes)
    store.flush()
    store.close()
    torch.distributed.barrier()
    on_main(lambda: _finish(hf_folder, source_hf, tensors))


def _finish(hf_folder: Path, source_hf: Path, tensors: dict[str, TensorSpec]) -> None:
    checkpoint.copy_hf_files(checkpoint.hf_folder(source_hf), hf_folder)
    checkpoint.state_dtype(hf_folder, tensors)
    safetensors.finish(safetensors.attach(hf_folder))


def _bytes_bar(held: list[Piece], desc: str) -> contextlib.AbstractContextManager[Progress]:
    return progress(sum(piece.data.nbytes for piece in held), f"{desc} of rank 0", unit="B", unit_scale=True)


def padded_vocab_size(chunks: list[MegatronModule]) -> int:
    """Rows of the embedding with its padding."""
    size: int = unwrap_model(chunks[0]).vocab_size
    return size


def _check_complete(chunks: list[MegatronModule], held: list[Piece], view: MegatronView) -> None:
    """Every parameter has a place in the folder, and every tensor of the folder one in the model of all ranks."""
    unknown = sorted({piece.key for piece in held} - set(view.tensors))
    in_pieces = sum(piece.data.numel() for piece in held)
    in_parameters = sum(tensor.numel() for chunk in chunks for tensor in _stored(chunk))
    if unknown or in_pieces != in_parameters:
        raise RuntimeError(
            f"family {view.family.name} has no rule for {', '.join(unknown) or 'all parameters'}: "
            f"{in_pieces:,} of {in_parameters:,} elements on this rank have a canonical name"
        )
    covered = Counter[str]()
    for piece in held:
        covered[piece.key] += math.prod(piece.shape) if piece.main else 0
    total = _gather(covered)
    left = [key for key, spec in view.tensors.items() if total.get(key, 0) != math.prod(spec.shape)]
    if left:
        raise UserError(
            f"{view.store.path} has tensors that the model on {torch.distributed.get_world_size()} ranks does not: "
            + ", ".join(
                f"`{key}` ({total.get(key, 0):,} of {math.prod(view.tensors[key].shape):,})" for key in left[:8]
            ),
            "Are model and folder of the same architecture?",
        )


def _stored(chunk: MegatronModule) -> Iterator[Tensor]:
    """Parameters, and buffers that belong to a checkpoint."""
    yield from chunk.parameters()
    for module in chunk.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield buffer


def _gather(mine: dict[str, Any]) -> dict[str, Any]:
    """The union over all ranks; counts of a Counter are added."""
    of_all: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_all, mine)
    if isinstance(mine, Counter):
        return sum(of_all, Counter())
    return {key: value for of_rank in of_all for key, value in of_rank.items()}
