"""The output folder of a tuning run, and where a start continues.

OUTPUT/run.yaml, data.json, .lock           whose folder it is: see swift_mega.base.output
OUTPUT/checkpoints/checkpoint-20/           all that it takes to go on, as transformers writes it
                   └── complete.json        what lies there, written last; without it nothing goes on from here
OUTPUT/model/                               the outcome: an adapter as PEFT has it, or a whole model; its tokenizer
OUTPUT/metrics.jsonl, loss.png, tensorboard/
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_bridge.methods.config import TuneConfig
from swift_mega.base.console import say
from swift_mega.base.errors import UserError
from swift_mega.base.output import RunFolder, place, value_of
from swift_mega.base.reading import read_errors_are_the_users

MANIFEST = "complete.json"
PREFIX = "checkpoint-"

MAY_CHANGE = (
    *("data.workers", "data.cache_dir", "data.on_bad_row"),
    *("loading.device_map", "loading.attn_implementation", "loading.trust_remote_code"),
)
"""Options of the sections below that do not decide what is computed."""

SAME = (
    *("model", "tuner", "loading", "data", "text", "length", "tuning", "train.seed"),
    *("method", "objective", "reference", "sampling", "reward", "grpo", "ppo"),
)
"""What makes two starts the same run: options, and sections with all but the above. The rest of `train`, such as its
length, and `parallel` may change."""


@dataclass(frozen=True)
class Outcome:
    """How a start ended."""

    step: int
    """Optimizer steps the run has done."""

    stop_reason: str
    """Empty when it reached its last step."""

    folder: Path
    """The tuned model or adapter; where it was stopped, the newest checkpoint."""


def checkpoints(config: TuneConfig) -> Path:
    """Folder of the run's checkpoints."""
    return Path(config.output) / "checkpoints"


def model_folder(config: TuneConfig) -> Path:
    """Folder of the outcome."""
    return Path(config.output) / "model"


def run_folder(config: TuneConfig, method: str, datasets: Mapping[str, Any] | None = None) -> RunFolder:
    """The run's output folder.

    Args:
        datasets: what is trained on, by the option that names it. None: whether it has changed is not looked at.
    """

    def prints() -> list[tuple[str, str]]:
        return [(name, str(getattr(found, "fingerprint", ""))) for name, found in (datasets or {}).items()]

    return RunFolder(
        config,
        identity=_identity,
        fingerprints=None if datasets is None else prints,
        resume=("train.resume", config.train.resume),
        begin_anew="as its data is not that of this one.",
        kind=f"swift-mega bridge {f'rlhf --method {method}' if hasattr(config, 'method') else method}",
    )


def _identity(config: TuneConfig) -> dict[str, Any]:
    """What makes two starts the same run, by dotted names."""
    from swift_mega.base.config import leaves

    names = [
        leaf.path
        for leaf in leaves(type(config))
        if any(leaf.path == same or leaf.path.startswith(f"{same}.") for same in SAME) and leaf.path not in MAY_CHANGE
    ]
    return {name: value_of(config, name) for name in names} | {"model": place(config.model)}


def seal(folder: Path, examples_per_step: int) -> None:
    """Write down that a checkpoint is complete, and what lies there."""
    files = {str(file.relative_to(folder)): file.stat().st_size for file in _files(folder)}
    record = json.dumps({"examples_per_step": examples_per_step, "files": files}, indent=1)
    partial = folder / f".{MANIFEST}.unfinished"
    partial.write_text(record, encoding="utf-8")
    partial.replace(folder / MANIFEST)


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and MANIFEST not in file.name]


def fault(folder: Path) -> str:
    """Why a checkpoint cannot be used; empty where it can."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return "it was not written to its end"
    for name, size in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if (found := file.stat().st_size) != size:
            return f"{name} has {found:,} of {size:,} bytes"
    return ""


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(folder.name.removeprefix(PREFIX))


def saved(config: TuneConfig) -> list[Path]:
    """The run's checkpoints, complete or not, oldest first."""
    found = [path for path in checkpoints(config).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def resume_folder(config: TuneConfig) -> Path | None:
    """The checkpoint that this start continues from; None for step 0. One that is broken is named.

    Raises:
        UserError: the one that is asked for, or every one that is there, is broken.
    """
    resume = config.train.resume
    with read_errors_are_the_users(checkpoints(config)):
        own = [] if resume == "never" else saved(config)
        # A path elsewhere is where the run begins; once it has checkpoints of its own they win.
        if resume not in ("auto", "never") and (not own or Path(resume).resolve() in [path.resolve() for path in own]):
            return _asked_for(Path(resume))
        faults = list[str]()
        for folder in reversed(own):
            if not (why := fault(folder)):
                for what in faults:
                    say(f"{what}: going on from {folder.name}.")
                return folder
            faults.append(f"{folder} cannot be used, {why}")
    if faults:
        raise UserError("; ".join(faults) + ".", "Remove them to begin at step 0, or choose another `output`.")
    return None


def _asked_for(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"`train.resume` is {folder}, and there is no such folder.", "Give a checkpoint, or `auto`.")
    if why := fault(folder):
        raise UserError(f"{folder} cannot be used: {why}.", "Give another checkpoint, or `auto`.")
    return folder


def check_batch(folder: Path, examples_per_step: int) -> None:
    """Refuse to continue with another batch, as the place in the data is counted in steps.

    Raises:
        UserError: how it was, and how it is.
    """
    before = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["examples_per_step"]
    if before != examples_per_step:
        raise UserError(
            f"{folder} was trained with {before:,} examples a step, and this start has {examples_per_step:,} "
            "(per_device_train_batch_size × gradient_accumulation_steps × processes).",
            "Make them the same; a step would not be at its place in the data.",
        )


def rotate(config: TuneConfig, best: str | None) -> None:
    """Remove the oldest checkpoints that are more than may stay."""
    limit = config.train.save_total_limit
    others = [folder for folder in saved(config) if best is None or folder.resolve() != Path(best).resolve()]
    for folder in others[: max(0, len(others) - limit)] if limit else []:
        shutil.rmtree(folder)
