"""The output folder belongs to one run: who may start in it, and where a start continues.

OUTPUT/run.yaml          the resolved configuration of the latest start
OUTPUT/.lock             held by the start that is at work
OUTPUT/checkpoints/      what `swift-mega convert` and the next start read
OUTPUT/hf/               with `checkpoint.export_hf`: the checkpoints in Hugging Face format
OUTPUT/metrics.jsonl, loss.png, tensorboard/
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from converters import checkpoint as layout
from swift_mega.base import config as configs
from swift_mega.base import lock
from swift_mega.base.console import say
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users
from swift_mega.methods.config import PretrainConfig

RECORD = "run.yaml"
PARTIAL_RECORD = f".{RECORD}{layout.UNFINISHED}"
LEFT_BY_A_FAILED_START = (PARTIAL_RECORD, "cache", lock.FILE)

IDENTITY = (
    "model.path",
    "model.weights",
    "model.revision",
    "data.train",
    "data.valid",
    "data.test",
    "data.split",
    "data.sequence_length",
    "train.seed",
)
"""What makes two starts the same run. All else (layout, batch size, schedule, length) may change between them."""


def checkpoints(config: PretrainConfig) -> Path:
    """Folder of the run's checkpoints, a Megatron checkpoint root."""
    return Path(config.output) / "checkpoints"


def check_output(config: PretrainConfig) -> None:
    """Refuse an output folder that is not this run's; nothing is written."""
    folder = Path(config.output)
    record = folder / RECORD
    if record.exists():
        _check_same_run(config, configs.build(PretrainConfig, configs.read_yaml(record), str(record)))
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file.", "Choose a folder with `output`.")
    elif folder.exists() and any(entry.name not in LEFT_BY_A_FAILED_START for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run.", "Choose another folder with `output`.")


@contextmanager
def opened_output(config: PretrainConfig) -> Iterator[None]:
    """Inside, the output folder is there, can be written, is this run's, and no other start is at work in it."""
    check_output(config)
    folder = Path(config.output)
    with ExitStack() as held:
        with write_errors_are_the_users(folder, option="`output`"):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock.alone_in(folder, "output"))
            with tempfile.TemporaryFile(dir=folder):
                pass
        check_output(config)  # again: the start that held it until now may have made it another run's
        yield


def claim_output(config: PretrainConfig) -> None:
    """Write `run.yaml`: from here on the folder holds this run.

    Called when all that a start can find wrong has been looked at, so that a mended start may differ.
    """
    folder = Path(config.output)
    with write_errors_are_the_users(folder, option="`output`"):
        # Renamed when complete: a start that is killed here must not leave half a record in the way of the next.
        (folder / PARTIAL_RECORD).write_text(configs.dump(config), encoding="utf-8")
        (folder / PARTIAL_RECORD).replace(folder / RECORD)


def _check_same_run(config: PretrainConfig, before: PretrainConfig) -> None:
    if config.checkpoint.resume == "never":
        raise UserError(
            f"{config.output} already holds a run, and checkpoint.resume is `never`.",
            "Choose another folder with `output`, or `--resume auto` to continue it.",
        )
    different = [name for name in IDENTITY if _value(config, name) != _value(before, name)]
    if different:
        pairs = ((name, _value(before, name), _value(config, name)) for name in different)
        changes = "; ".join(f"{name}: {there!r} there, {here!r} here" for name, there, here in pairs)
        raise UserError(
            f"{config.output} holds another run ({changes}).",
            "Choose another folder with `output`, or restore these options to continue that run.",
        )


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
    if resume != "auto" and Path(resume).resolve().is_relative_to(root.resolve()):
        return layout.latest(Path(resume))  # also where the newest of them is lost
    own = _newest(root)
    if resume == "auto":
        return own
    if own is None:
        return layout.latest(Path(resume))
    say(f"{config.output} has checkpoints of its own: it continues from {own.name}, not from {resume}.")
    return own


def _newest(root: Path) -> Path | None:
    finished = layout.iterations(root)
    if not finished:
        return None
    # A run that was killed between the renaming of its first checkpoint and the tracker has one without the other.
    return layout.latest(root) if (root / layout.TRACKER).is_file() else finished[-1]
