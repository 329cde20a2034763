"""Megatron's older checkpoints: one file of `torch.save` for each rank, read and written without torch.

    ROOT/latest_checkpointed_iteration.txt
    ROOT/iter_0000100/mp_rank_TT/model_optim_rng.pt              TT: tensor-parallel rank
                      mp_rank_TT_PPP/…                           PPP: pipeline stage
                      mp_rank_TT_EEE/… or mp_rank_TT_PPP_EEE/…   EEE: expert-parallel rank

and in a file `model` (or `model0`, `model1` … for virtual stages) → the names and tensors of a state dict, `args`,
`iteration` and what else there is, such as the optimizer. Layers and experts are counted from the rank's first one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters import checkpoint
from converters.plan import Target
from converters.ranks import Grid, Rank
from converters.stores import torch_zip
from converters.stores.torch_dist import damaged, opened
from converters.stores.torch_zip import Opaque
from converters.tensors import TensorSpec
from swift_mega.base.errors import UserError

FILE = "model_optim_rng.pt"
_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3}))?(?:_(\d{3}))?")
_CHUNK = re.compile(r"model(\d*)")
ABOUT = {"args", "checkpoint_version", "iteration", "num_floating_point_operations_so_far"}
"""What says something about the model and is no state of the training."""
MORE = {("_io", "BytesIO"): Opaque}
"""TransformerEngine's `_extra_state` may be one."""
FIRST, LAST = "embedding.word_embeddings.weight", ("decoder.final_layernorm.weight", "decoder.final_norm.weight")
"""What the first stage has, and which of these the last one."""


@dataclass(frozen=True)
class RankFile:
    """What one rank saved."""

    rank: Rank
    path: Path
    chunks: list[dict[str, Any]]
    """One for each virtual stage: name → `TensorRecord`, or what is no tensor."""
    others: dict[str, Any]
    """Everything else."""


def find(path: Path) -> Path | None:
    """The iteration folder, if `path` is such a checkpoint's root or one of its iteration folders."""
    tracker = path / checkpoint.TRACKER
    said = tracker.read_text(encoding="utf-8").strip() if tracker.is_file() else ""
    step = int(said) if said.isdigit() else None
    folder = path / checkpoint.iteration_name(step) if said else path
    return folder if any(folder.glob(f"mp_rank_*/{FILE}")) else None


def open_ranks(folder: Path) -> list[RankFile]:
    """What all ranks saved.

    Raises:
        UserError: a rank's file is missing, damaged or not to be trusted.
    """
    names = {found: path for path in sorted(folder.glob(f"mp_rank_*/{FILE}")) if (found := _numbers(path))}
    files = [_open(numbers, path) for numbers, path in names.items()]
    own = {name for chunk in files[0].chunks for name in chunk}
    whole_model = FIRST in own and not own.isdisjoint(LAST)
    if whole_model and all(len(numbers) == 2 for numbers in names):
        # The second number is the pipeline's or the experts': here there is no pipeline.
        files = [
            RankFile(Rank(file.rank.tensor, 0, file.rank.pipeline), file.path, file.chunks, file.others)
            for file in files
        ]
    for axis, numbers in zip(Rank._fields, zip(*(file.rank for file in files), strict=True), strict=True):
        if missing := set(range(max(numbers) + 1)) - set(numbers):
            raise UserError(
                f"{folder} has no files of {axis}-parallel rank {', '.join(map(str, sorted(missing)))}.",
                "Copy the folders of all ranks.",
            )
    return files


def _numbers(path: Path) -> tuple[int, ...]:
    found = _FOLDER.fullmatch(path.parent.name)
    return tuple(int(number) for number in found.groups() if number is not None) if found else ()


def _open(numbers: tuple[int, ...], path: Path) -> RankFile:
    with opened(path):
        content = torch_zip.read_file(path, MORE)
    if not isinstance(content, dict):
        raise damaged(path, f"it holds a {type(content).__name__}, not a dict")
    chunks = sorted((int(found[1] or 0), name) for name in content if (found := _CHUNK.fullmatch(str(name))))
    states = [content[name] for _, name in chunks]
    if not states or not all(isinstance(state, dict) for state in states):
        raise damaged(path, f"it holds no `model`, but {', '.join(map(str, content)) or 'nothing'}")
    others = {name: value for name, value in content.items() if not _CHUNK.fullmatch(str(name))}
    return RankFile(Rank(*numbers), path, states, others)


def layout(
    folder: Path, models: Mapping[Rank, Sequence[Mapping[str, TensorSpec | None]]], grid: Grid, others: dict[str, Any]
) -> tuple[Target, dict[tuple[Rank, int, str], tuple[Path, int]]]:
    """A folder to be written; and file and first byte of each tensor, by rank, virtual stage and name.

    Args:
        models: for each rank the state dict of each virtual stage; None stands for itself.
        others: what each file holds besides.
    """
    target = Target({}, {})
    begins: dict[tuple[Rank, int, str], tuple[Path, int]] = {}
    for rank, chunks in models.items():
        names = ["model"] if len(chunks) == 1 else [f"model{number}" for number in range(len(chunks))]
        content = torch_zip.archive(
            {**others, **{name: dict(chunk) for name, chunk in zip(names, chunks, strict=True)}}
        )
        path = folder / _folder_name(rank, grid) / FILE
        target.files[path] = content.nbytes
        target.fixed.extend((path, at, part) for at, part in content.fixed)
        tensors = [(number, name) for number, chunk in enumerate(chunks) for name, spec in chunk.items() if spec]
        for (number, name), at in zip(tensors, content.payloads, strict=True):
            begins[rank, number, name] = path, at
    return target, begins


def _folder_name(rank: Rank, grid: Grid) -> str:
    pipeline = f"_{rank.pipeline:03d}" if grid.pipeline > 1 else ""
    expert = f"_{rank.expert:03d}" if grid.expert > 1 else ""
    return f"mp_rank_{rank.tensor:02d}{pipeline}{expert}"
