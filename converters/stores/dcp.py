"""Checkpoints of torch.distributed.checkpoint, such as FSDP writes: chunks of tensors under Hugging Face names.

They are what Megatron's `torch_dist` folders are without `metadata.json`, with other names: those of the model, after
something that says where it was in what was saved (`model.`, `app.model.`), and those of the optimizer.
"""

from collections.abc import Collection
from pathlib import Path

from converters import checkpoint
from converters.space import Space
from converters.stores import torch_dist
from swift_mega.base.errors import UserError

STATE = ("optim", "lr_scheduler", "dataloader", "train_state", "rng_state", "extra_state", "step")
"""How the first word of a key begins that is no weight."""


def is_dcp(path: Path) -> bool:
    """Whether `path` is such a folder."""
    return (path / torch_dist.METADATA).is_file() and not (path / checkpoint.MARKER).is_file()


def open_weights(folder: Path, wanted: Collection[str], embedding: str) -> tuple[Space, list[str]]:
    """The weights under Hugging Face names, and the keys that are none.

    Args:
        folder: the checkpoint.
        wanted: the names of the model's weights.
        embedding: one of them, by which the names are recognised.

    Raises:
        UserError: damaged, or without an embedding.
    """
    stored = torch_dist.open_distributed(folder)
    before = sorted((key.removesuffix(embedding) for key in stored.tensors if key.endswith(embedding)), key=len)
    if not before:
        raise UserError(
            f"{folder} has no `{embedding}`; it holds: {', '.join(sorted(stored.tensors)[:5]) or 'no tensors'}.",
            "Give a checkpoint whose tensors have the names of the Hugging Face model, and the config.json of that.",
        )
    names = {key: key.removeprefix(before[0]) for key in stored.tensors if key.startswith(before[0])}
    weights = {key: name for key, name in names.items() if name in wanted or not key.startswith(STATE)}
    others = [key for key in (*stored.tensors, *stored.objects) if key not in weights]
    return {name: stored.stored(key) for key, name in weights.items()}, others
