"""The output folder belongs to one run: who may start in it, and where a start continues.

OUTPUT/run.yaml          the resolved configuration of the latest start
OUTPUT/data.json         what the run reads, to notice when something else is put in its place
OUTPUT/.lock             held by the start that is at work
OUTPUT/checkpoints/      what `swift-mega convert` and the next start read
OUTPUT/hf/               with `checkpoint.export_hf`: the checkpoints in Hugging Face format
OUTPUT/metrics.jsonl, loss.png, tensorboard/
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters import checkpoint as folders
from swift_mega.base import config as configs
from swift_mega.base import lock
from swift_mega.base.errors import UserError
from swift_mega.base.reading import read_errors_are_the_users
from swift_mega.base.writing import write_errors_are_the_users
from swift_mega.data import manifest
from swift_mega.data.blend import parse_blend
from swift_mega.data.shares import parse_split
from swift_mega.methods.config import PretrainConfig

RECORD, DATA_RECORD = "run.yaml", "data.json"
HEADER = "# Written by swift-mega: what the latest start of the run in this folder was told, defaults included.\n"
"""By this line a record is told from a file of the user's that has the same name."""

PARTIAL_RECORDS = {name: f".{name}{folders.UNFINISHED}" for name in (RECORD, DATA_RECORD)}
LEFT_BY_A_FAILED_START = (*PARTIAL_RECORDS.values(), "cache", lock.FILE)

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


def check_output(config: PretrainConfig) -> None:
    """Refuse an output folder that is not this run's; nothing is written."""
    folder = Path(config.output)
    with read_errors_are_the_users(folder):
        has_record = (folder / RECORD).exists()
    if has_record:
        _check_same_run(config, _read_record(folder / RECORD))
        _check_same_data(config)
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file.", "Choose a folder with `output`.")
    elif folder.exists() and any(entry.name not in LEFT_BY_A_FAILED_START for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run.", "Choose another folder with `output`.")


@contextmanager
def opened_output(config: PretrainConfig) -> Iterator[None]:
    """Inside, the output folder is there, can be written, is this run's, and no other start is at work in it."""
    folder = Path(config.output)
    with ExitStack() as held:
        with write_errors_are_the_users(folder, option="`output`"):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock.alone_in(folder, "output"))
            with tempfile.TemporaryFile(dir=folder):
                pass
        check_output(config)  # again: the start that held it until now may have made it another run's
        yield


def claim_output(config: PretrainConfig) -> list[str]:
    """Write `run.yaml`, and return what changes in it: from here on the folder holds this run.

    Called when all that a start can find wrong has been looked at, so that a mended start may differ.
    """
    folder = Path(config.output)
    changes = _changes(_read_record(folder / RECORD), config) if (folder / RECORD).exists() else []
    with write_errors_are_the_users(folder, option="`output`"):
        data = json.dumps(_fingerprints(config), indent=1) + "\n"
        (folder / PARTIAL_RECORDS[DATA_RECORD]).write_text(data, encoding="utf-8")
        (folder / PARTIAL_RECORDS[RECORD]).write_text(HEADER + configs.dump(config), encoding="utf-8")
        # When complete: a start that is killed here must not leave half a record in the way of the next, nor one
        # that alone says nothing about whose folder it is.
        for name, partial in PARTIAL_RECORDS.items():
            (folder / partial).replace(folder / name)
    return changes


def _read_record(record: Path) -> PretrainConfig:
    with read_errors_are_the_users(record):
        if not record.read_bytes().startswith(HEADER.encode()):
            raise UserError(
                f"{record} is not a record of a run, and would be written over.",
                "Choose another folder with `output`, or give that file another name.",
            )
    return configs.build(PretrainConfig, configs.read_yaml(record), str(record))


def _check_same_run(config: PretrainConfig, before: PretrainConfig) -> None:
    if config.checkpoint.resume == "never":
        raise UserError(
            f"{config.output} already holds a run, and checkpoint.resume is `never`.",
            "Choose another folder with `output`, or `--resume auto` to continue it.",
        )
    here, there = _identity(config), _identity(before)
    changes = "; ".join(
        f"{name}: {_value(before, name)!r} there, {_value(config, name)!r} here"
        for name in IDENTITY
        if here[name] != there[name]
    )
    if changes:
        raise UserError(
            f"{config.output} holds another run ({changes}).",
            "Choose another folder with `output`, or restore these options to continue that run.",
        )


def _check_same_data(config: PretrainConfig) -> None:
    """The options name the same data as ever; is it?"""
    record = Path(config.output) / DATA_RECORD
    if not record.exists():
        return
    with read_errors_are_the_users(record):
        before = json.loads(record.read_text(encoding="utf-8"))
    # By their order: the same place may be spelt in another way now.
    pairs = zip(_fingerprints(config), before, strict=True)
    other = [prefix for (prefix, here), (_, there) in pairs if here != there]
    if other:
        raise UserError(
            f"{', '.join(other)} holds other data than the run in {config.output} has read until now.",
            f"Restore it, or begin another run: another `output`, with model.path={checkpoints(config)} "
            "if it is to begin with these weights.",
        )


def _fingerprints(config: PretrainConfig) -> list[tuple[str, str]]:
    """What each source of the run holds, in the order in which they are named."""
    data = config.data
    prefixes = [prefix for entries in (data.train, data.valid, data.test) for prefix in parse_blend(entries)[0]]
    return [(prefix, manifest.fingerprint(prefix)) for prefix in prefixes]


def _identity(config: PretrainConfig) -> dict[str, Any]:
    """The values of `IDENTITY`, in one spelling of several that mean the same."""
    values = {name: _value(config, name) for name in IDENTITY}
    for name in ("data.train", "data.valid", "data.test"):
        prefixes, weights = parse_blend(values[name])
        values[name] = [Path(prefix).resolve() for prefix in prefixes], weights
    for name in ("model.path", "model.tokenizer"):
        if values[name] and Path(values[name]).is_dir():
            values[name] = Path(values[name]).resolve()
    values["data.split"] = parse_split(values["data.split"])
    return values


def _changes(before: PretrainConfig, now: PretrainConfig) -> list[str]:
    """`name before → now` for each option that is not as it was; those of the identity only look different."""
    names = [leaf.path for leaf in configs.leaves(PretrainConfig) if leaf.path not in ("output", *IDENTITY)]
    pairs = ((name, _value(before, name), _value(now, name)) for name in names)
    return [f"{name} {_shown(there)} → {_shown(here)}" for name, there, here in pairs if there != here]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _value(config: PretrainConfig, path: str) -> Any:
    section, _, name = path.partition(".")
    return getattr(getattr(config, section), name)


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
