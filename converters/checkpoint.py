"""The folder of a Megatron checkpoint, written by a conversion and by training alike.

    ROOT/latest_checkpointed_iteration.txt     "release" (converted) or the number of the last step
    ROOT/release/ or ROOT/iter_0000012/        metadata.json, common.pt, .metadata, __*_*.distcp
         └── hf/                               config.json, tokenizer, chat template: all but the weights

`hf/` makes an iteration folder complete: exporting it needs nothing from anywhere else.
"""

import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from converters.config_table import Config
from converters.quantisation import FIELD, unquantised
from converters.stores.files import read_json, write_json
from converters.tensors import TensorSpec
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
MARKER = "metadata.json"
"""Every iteration folder has it; megatron-core recognises a distributed checkpoint by it."""
HF = "hf"
EXPORT = "export.json"
"""In `hf/`: the form that the Hugging Face folder had, where its family knows several; an export takes it up."""
UNMAPPED = "unmapped.safetensors"
"""In `hf/`: tensors of the Hugging Face model that Megatron has no place for; an export puts them back."""
CHAT_TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer's further chat templates, as transformers calls it."""
MANIFEST = "tensors.xxh3.json"
"""A hash of every tensor (`convert manifest`), by default in the folder that it is of; it goes nowhere else."""
OURS = (EXPORT, UNMAPPED)
"""What only a Megatron checkpoint has in its `hf/`."""
CONFIG = "config.json"
UNFINISHED = ".unfinished"
"""Suffix of a folder or file that is still being written; a crash leaves it behind, and nothing reads it."""

WEIGHT_SUFFIXES = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".partial",
)
"""Files of a Hugging Face folder that hold weights, or say where they are."""


def iteration_name(step: int | None) -> str:
    """Folder name of a step, or of converted weights (None)."""
    return RELEASE if step is None else f"iter_{step:07d}"


def iterations(root: str | Path) -> list[Path]:
    """The finished checkpoints of steps under `root`, oldest first."""
    return sorted(folder for folder in Path(root).glob("iter_[0-9]*") if folder.suffix == "" and is_iteration(folder))


def outdated(iterations: list[Path], newest: Path, keep_last: int) -> list[Path]:
    """What to remove so that `newest` and those before it are `keep_last`, 0 for all.

    A run that went back to an earlier checkpoint still has later ones, which must not outlive those it saves.
    """
    return [folder for folder in iterations if folder.name <= newest.name][:-keep_last] if keep_last else []


def write_tracker(root: str | Path, step: int | None) -> None:
    """Let the tracker point to a finished folder: written aside and renamed, so that it is never half a number."""
    aside = Path(root) / f".{TRACKER}{UNFINISHED}"
    aside.write_text(RELEASE if step is None else str(step), encoding="utf-8")
    aside.replace(Path(root) / TRACKER)


def remove(iteration: Path) -> None:
    """Remove a checkpoint so that no moment of it is taken for a whole one: renamed first, emptied then."""
    doomed = iteration.with_name(f"{iteration.name}.old{UNFINISHED}")
    shutil.rmtree(doomed, ignore_errors=True)
    iteration.rename(doomed)
    shutil.rmtree(doomed)


def is_iteration(path: Path) -> bool:
    """Whether `path` is itself a finished checkpoint folder."""
    return (path / MARKER).is_file() and (path / ".metadata").is_file()


def is_megatron(path: str | Path) -> bool:
    """Whether `path` is a Megatron checkpoint: a root with its tracker, or one iteration folder."""
    return (Path(path) / TRACKER).is_file() or is_iteration(Path(path))


def latest(root: str | Path) -> Path:
    """The iteration folder a checkpoint root points to; an iteration folder is its own.

    Raises:
        UserError: no tracker, or it points to a folder that is not there.
    """
    root = Path(root)
    if is_iteration(root):
        return root
    if not (root / TRACKER).is_file():
        raise UserError(f"{root} is no Megatron checkpoint: it has no {TRACKER}.", "Give a checkpoint's root folder.")
    said = (root / TRACKER).read_text(encoding="utf-8").strip()
    if said != RELEASE and not said.isdigit():
        raise UserError(f"{root / TRACKER} says {said!r}.", f"It should say `{RELEASE}` or the number of a step.")
    folder = root / iteration_name(None if said == RELEASE else int(said))
    if not is_iteration(folder):
        finished = sorted(str(path) for path in root.iterdir() if is_iteration(path))
        raise UserError(
            f"{root / TRACKER} points to {folder.name}, which is no finished checkpoint.",
            f"Name one that is: {', '.join(finished) or 'there is none'}.",
        )
    return folder


def hf_folder(path: str | Path) -> Path:
    """The folder with config.json and tokenizer: of a Hugging Face folder itself, of a checkpoint its `hf/`."""
    path = Path(path)
    folder = latest(path) / HF if is_megatron(path) else path
    if not (folder / "config.json").is_file():
        run = path / "checkpoints"
        raise UserError(
            f"{folder} has no config.json.",
            f"Give {run}, where this run keeps its checkpoints."
            if is_megatron(run)
            else "Give a folder in Hugging Face format, or a Megatron checkpoint with its hf/ folder.",
        )
    return folder


def read_config(path: str | Path) -> Config:
    """config.json of a Hugging Face folder or a Megatron checkpoint."""
    return read_json(hf_folder(path) / "config.json")


def hf_files(folder: str | Path) -> list[Path]:
    """The files of a Hugging Face folder that are not weights: config, tokenizer, templates, licence.

    And, in the `hf/` of a checkpoint, the tensors that Megatron has no place for.
    """
    folder = Path(folder)
    return sorted(
        file
        for file in (*folder.iterdir(), *(folder / CHAT_TEMPLATES).glob("*.jinja"))
        if (file.is_file() and not file.name.endswith((*WEIGHT_SUFFIXES, MANIFEST)) and not file.name.startswith("."))
        or file.name == UNMAPPED
    )


def copy_hf_files(source: str | Path, target: str | Path, but: Collection[str] = ()) -> None:
    """Copy everything but the weights, and the files `but`, from one Hugging Face folder into another, made if need be.

    What config.json says about quantised weights is left out, as none are written.
    """
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    with write_errors_are_the_users(target):
        for file in hf_files(source):
            if file.name not in but:
                copy = target / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)
        config = target / "config.json"
        if config.is_file() and FIELD in (said := read_json(config)):
            write_json(config, unquantised(said), sort_keys=False)


def state_dtype(folder: str | Path, tensors: Mapping[str, TensorSpec]) -> None:
    """Make a folder's config.json name the dtype in which most bytes are stored, where it names one at all."""
    file = Path(folder) / "config.json"
    config: Config = read_json(file)
    count: Counter[str] = Counter()
    for spec in tensors.values():
        count[spec.dtype] += spec.nbytes
    stored = count.most_common(1)[0][0]
    wrong = [name for name in ("dtype", "torch_dtype") if config.get(name) not in (None, stored)]
    if wrong:
        with write_errors_are_the_users(folder):
            write_json(file, config | dict.fromkeys(wrong, stored), sort_keys=False)
