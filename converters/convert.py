"""`swift-mega convert`: Hugging Face → Megatron and back, streamed, without building a model.

Which way is decided by looking at the source. A conversion is a list of jobs, one for each chunk of
each Megatron tensor, taken in the order in which the source has them on disk; at any time one chunk
is in memory. Before the first job every tensor of the source and of the target has been accounted
for. The result is written under a temporary name beside the target and renamed when it is complete.
"""

import contextlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from converters import checkpoint
from converters.accounting import mismatch
from converters.families._common import EMBEDDING
from converters.family import family_of, padded_vocab_size
from converters.stores import safetensors, torch_dist
from converters.tensors import TensorSpec
from converters.view import MegatronView, hf_tensors
from swift_mega.base.console import Progress, progress, say
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users

Format = Literal["megatron", "hf"]

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
"""`--dtype` → torch's name."""

NOT_WEIGHTS = ("optimizer.", "chained_", "rng_state", "rerun_state_machine_state", "opt_param_scheduler")
"""How the keys begin that a training checkpoint holds besides the model."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be chosen."""

    overwrite: bool = False
    """Replace a target that is not empty."""

    max_shard_bytes: int = 5_000_000_000
    dtype: str | None = None
    """torch's name of the dtype to cast to. None: as stored."""

    vocab_divisible_by: int = 128
    target_tp: int = 1
    """The Megatron embedding is padded to a multiple of vocab_divisible_by × target_tp."""


def convert(source: Path, target: Path, *, to: Format | None = None, options: Options | None = None) -> None:
    """Convert a Hugging Face folder into a Megatron checkpoint, or the other way round.

    Args:
        source: a folder of either kind.
        target: a folder that is made; it must be empty or absent unless `options.overwrite`.
        to: what the result is to be, if that is to be checked against the source.

    Raises:
        UserError: whatever a user can mend; nothing is left at the target then.
    """
    source, target, options = Path(source), Path(target), options or Options()
    direction: Format = "hf" if checkpoint.is_megatron(source) else "megatron"
    if not source.is_dir():
        raise UserError(f"there is no folder {source}.", "Give a Hugging Face folder or a Megatron checkpoint.")
    if to not in (None, direction):
        raise UserError(
            f"{source} is a {'Megatron checkpoint' if direction == 'hf' else 'Hugging Face folder'} already.",
            f"Leave out --to, or say --to {direction}.",
        )
    with _staged(source, target, options.overwrite) as folder:
        (_to_hf if direction == "hf" else _to_megatron)(source, folder, options)
    say(f"wrote {target}")


def _to_megatron(source: Path, root: Path, options: Options) -> None:
    config = checkpoint.read_config(source)
    family = family_of(config)
    vocab_size = family.megatron_arguments(config).vocab_size
    padded = padded_vocab_size(vocab_size, options.vocab_divisible_by, options.target_tp)
    view = MegatronView(family, config, safetensors.open_folder(source), padded)
    say(f"{source} → Megatron: {family.name}, vocabulary {vocab_size:,} padded to {padded:,}")
    _say_all(view.notes)

    tensors = {key: _cast_spec(spec, options.dtype) for key, spec in view.tensors.items()}
    jobs = sorted(
        ((key, offset, shape) for key in tensors for offset, shape in view.chunks(key)),
        key=lambda job: view.position(job[0], job[1]),
    )
    folder = root / checkpoint.RELEASE
    objects = list(torch_dist.extra_state_keys(tensors))
    writer = torch_dist.TorchDistWriter(folder, tensors, len(jobs) + len(objects))
    with contextlib.closing(writer), _bytes_bar(view, "HF → Megatron") as bar:
        for key, offset, shape in jobs:
            array = view.read(key, offset, shape)
            writer.write(key, offset, torch_dist.cast(array, view.tensors[key].dtype, tensors[key].dtype))
            bar.update(array.nbytes)
        for key in objects:
            writer.write_object(key, torch_dist.empty_extra_state())
        writer.finish(
            {"checkpoint_version": 3.0, "iteration": 0, "content_metadata": {"singleton_local_shards": False}}
        )
    checkpoint.copy_hf_files(source, folder / checkpoint.HF)
    checkpoint.state_dtype(folder / checkpoint.HF, tensors)
    with write_errors_are_the_users(root):
        checkpoint.write_tracker(root, None)


def _to_hf(source: Path, target: Path, options: Options) -> None:
    folder = checkpoint.latest(source)
    config = checkpoint.read_config(folder)
    family = family_of(config)
    arguments = family.megatron_arguments(config)
    stored = torch_dist.open_checkpoint(folder)
    say(f"{folder} → Hugging Face: {family.name}")
    weights = _model_tensors(stored.tensors, folder)
    _say_all(_left_out([*stored.objects, *(key for key in stored.tensors if key not in weights)]))

    if fault := mismatch((rule.megatron for rule in family.rules_for(arguments)), weights):
        raise UserError(
            f"{folder} does not hold the tensors of {family.name} with its hf/config.json: {fault}.",
            "The checkpoint is of another model than hf/ says, or of a layout that cannot be exported.",
        )
    tensors = hf_tensors(family, arguments, {key: options.dtype or spec.dtype for key, spec in weights.items()})
    store = safetensors.create(target, tensors, options.max_shard_bytes)
    view = MegatronView(family, config, store, weights[EMBEDDING].shape[0])
    _check_shapes(folder, view, weights)

    jobs = sorted(((key, chunk) for key in weights for chunk in stored.chunks[key]), key=lambda job: job[1][2:4])
    with contextlib.closing(store), _bytes_bar(view, "Megatron → HF") as bar:
        for key, chunk in jobs:
            array = torch_dist.cast(stored.read(key, chunk), weights[key].dtype, view.tensors[key].dtype)
            view.write(key, chunk.offset, array)
            bar.update(array.nbytes)
        safetensors.finish(store)
    checkpoint.copy_hf_files(folder / checkpoint.HF, target)
    checkpoint.state_dtype(target, tensors)


def _model_tensors(tensors: dict[str, TensorSpec], folder: Path) -> dict[str, TensorSpec]:
    weights = {key: spec for key, spec in tensors.items() if not key.startswith(NOT_WEIGHTS)}
    if EMBEDDING not in weights:
        raise UserError(
            f"{folder} has no `{EMBEDDING}`; it holds: {', '.join(sorted(tensors)[:5]) or 'no tensors'}.",
            "Give a checkpoint of a whole GPT model.",
        )
    return weights


def _left_out(keys: list[str]) -> list[str]:
    """One line for each kind of entry that is not a weight."""
    kinds = Counter("_extra_state" if "._extra_state" in key else re.split("[./]", key)[0] for key in keys)
    return [f"left out {count:,} entries of `{kind}`: not weights" for kind, count in sorted(kinds.items())]


def _check_shapes(folder: Path, view: MegatronView, weights: dict[str, TensorSpec]) -> None:
    for key, spec in weights.items():
        wanted = view.tensors[key].shape
        if spec.shape != wanted:
            raise UserError(
                f"{folder}: `{key}` is {list(spec.shape)}, with hf/config.json it would be {list(wanted)}.",
                "The checkpoint is of another model than hf/ says.",
            )


@contextlib.contextmanager
def _staged(source: Path, target: Path, overwrite: bool) -> Iterator[Path]:
    """A fresh folder beside the target that takes its name if the body succeeds, and vanishes if not."""
    source, target = source.resolve(), target.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"{target} and the source {source} lie in one another.", "Choose a target elsewhere.")
    staging, replaced = (target.with_name(f".{target.name}{suffix}") for suffix in (checkpoint.UNFINISHED, ".replaced"))
    if replaced.exists() and not target.exists():
        replaced.rename(target)  # an earlier conversion was killed between the two renames below
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file.", "Choose a folder as target.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UserError(f"{target} is not empty.", "Choose another target, or --overwrite to replace it.")
    with write_errors_are_the_users(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # left by a conversion that was killed
        shutil.rmtree(replaced, ignore_errors=True)
        staging.mkdir()
    try:
        yield staging
        if target.exists():
            target.rename(replaced)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _bytes_bar(view: MegatronView, desc: str) -> contextlib.AbstractContextManager[Progress]:
    total = sum(spec.nbytes for spec in view.tensors.values())
    return progress(total, desc, "B", unit_scale=True)


def _cast_spec(spec: TensorSpec, dtype: str | None) -> TensorSpec:
    return TensorSpec(spec.shape, dtype or spec.dtype)


def _say_all(lines: list[str]) -> None:
    for line in lines:
        say(f"  {line}")
