"""The output folder belongs to one run: who may start in it, and where a start continues.

OUTPUT/run.yaml          the resolved configuration of the latest start
OUTPUT/data.json         what the run reads, to notice when something else is put in its place
OUTPUT/.lock             held by the start that is at work
OUTPUT/checkpoints/      what `swift-mega convert` and the next start read
OUTPUT/hf/               with `checkpoint.export_hf`: the checkpoints in Hugging Face format
OUTPUT/metrics.jsonl, loss.png, tensorboard/
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters import checkpoint as folders
from swift_mega.base.errors import UserError
from swift_mega.base.output import RunFolder, place, value_of
from swift_mega.base.reading import read_errors_are_the_users
from swift_mega.data import manifest
from swift_mega.data.blend import parse_blend
from swift_mega.data.shares import parse_split
from swift_mega.methods.config import PretrainConfig

IDENTITY = (
    "model.path",
    "model.weights",
    "model.revision",
    "model.tokenizer",
    "data.train",
    "data.valid",
    "data.test",
    "data.split",
    "data.sequence_length",
    "data.eod_mask_loss",
    "train.seed",
)
"""What makes two starts the same run. All else (layout, batch size, schedule, length …) may change between them."""


@dataclass(frozen=True)
class Outcome:
    """How a start ended."""

    step: int
    """Optimizer steps the run has done."""

    stop_reason: str
    """Empty when it reached its last step."""

    checkpoint: Path
    """The newest checkpoint."""


def checkpoints(config: PretrainConfig) -> Path:
    """Folder of the run's checkpoints, a Megatron checkpoint root."""
    return Path(config.output) / "checkpoints"


def exports(config: PretrainConfig) -> Path:
    """Folder of the run's checkpoints in Hugging Face format."""
    return Path(config.output) / "hf"


def run_folder(config: PretrainConfig) -> RunFolder:
    """The run's output folder."""
    return RunFolder(
        config,
        identity=_identity,
        fingerprints=lambda: _fingerprints(config),
        resume=("checkpoint.resume", config.checkpoint.resume),
        begin_anew=f"with model.path={checkpoints(config)} if it is to begin with these weights.",
        leftovers=("cache",),
    )


def check_output(config: PretrainConfig) -> None:
    """Refuse an output folder that is not this run's; nothing is written."""
    run_folder(config).check()


@contextmanager
def opened_output(config: PretrainConfig) -> Iterator[None]:
    """Inside, the output folder is there, can be written, is this run's, and no other start is at work in it."""
    with run_folder(config).opened():
        yield


def claim_output(config: PretrainConfig) -> list[str]:
    """Write `run.yaml`, and return what changes in it: from here on the folder holds this run."""
    return run_folder(config).claim()


def _fingerprints(config: PretrainConfig) -> list[tuple[str, str]]:
    """What each source of the run holds, in the order in which they are named."""
    data = config.data
    prefixes = [prefix for entries in (data.train, data.valid, data.test) for prefix in parse_blend(entries)[0]]
    return [(prefix, manifest.fingerprint(prefix)) for prefix in prefixes]


def _identity(config: PretrainConfig) -> dict[str, Any]:
    """The values of `IDENTITY`, in one spelling of several that mean the same."""
    values = {name: value_of(config, name) for name in IDENTITY}
    for name in ("data.train", "data.valid", "data.test"):
        prefixes, weights = parse_blend(values[name])
        values[name] = [Path(prefix).resolve() for prefix in prefixes], weights
    for name in ("model.path", "model.tokenizer"):
        values[name] = place(values[name])
    values["data.split"] = parse_split(values["data.split"])
    return values


def resume_folder(config: PretrainConfig) -> Path | None:
    """The checkpoint this start continues from, or None for step 0.

    A path elsewhere is where the run begins; once it has checkpoints of its own they win, so that the same
    command can be started again and again. A path among its own goes back to that one.
    """
    resume, root = config.checkpoint.resume, checkpoints(config)
    if resume == "never":
        return None
    with read_errors_are_the_users(root):
        if resume != "auto" and Path(resume).resolve().is_relative_to(root.resolve()):
            return folders.latest(Path(resume))  # also where the newest of them is lost
        own = _newest(root)
        return own if own or resume == "auto" else folders.latest(Path(resume))


def _newest(root: Path) -> Path | None:
    finished = folders.iterations(root)
    if not finished:
        return None
    # A run that was killed between the renaming of its first checkpoint and the tracker has one without the other.
    return folders.latest(root) if (root / folders.TRACKER).is_file() else finished[-1]


def step_of(folder: Path) -> int:
    """The step of a checkpoint, by its name; 0 for converted weights."""
    return 0 if folder.name == folders.RELEASE else int(folder.name.removeprefix("iter_"))


def finished(config: PretrainConfig) -> Outcome | None:
    """How the run ended that has nothing left to do; None if it has.

    Raises:
        UserError: it would begin at a checkpoint elsewhere that is at its last step already.
    """
    folder, last_step = resume_folder(config), config.train.steps
    if folder is None or step_of(folder) < last_step:
        return None
    if not folder.resolve().is_relative_to(checkpoints(config).resolve()):
        raise UserError(
            f"{folder} is at step {step_of(folder)}, and the run ends with step {last_step} (train.steps).",
            f"Raise train.steps; for a new run that begins with these weights give model.path={folder.parent}",
        )
    left = config.checkpoint.export_hf and not (exports(config) / folder.name).exists()
    return None if left else Outcome(step_of(folder), "", folder)
