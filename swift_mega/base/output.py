"""The output folder belongs to one run: who may start in it, and what it remembers of the start before. Torch-free.

OUTPUT/run.yaml          the resolved configuration of the latest start
OUTPUT/data.json         what the run reads, to notice when something else is put in its place
OUTPUT/.lock             held by the start that is at work
"""

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from swift_mega.base import config as configs
from swift_mega.base import lock
from swift_mega.base.errors import UserError
from swift_mega.base.reading import read_errors_are_the_users
from swift_mega.base.writing import UNFINISHED, write_errors_are_the_users

RECORD, DATA_RECORD = "run.yaml", "data.json"
HEADER = "# Written by swift-mega: what the latest start of the run in this folder was told, defaults included.\n"
"""By this line a record is told from a file of the user's that has the same name."""

PARTIAL_RECORDS = {name: f".{name}{UNFINISHED}" for name in (RECORD, DATA_RECORD)}
LEFT_BY_A_FAILED_START = (*PARTIAL_RECORDS.values(), lock.FILE)


@dataclass(frozen=True)
class RunFolder:
    """The folder `config.output` in the hands of one start.

    Attributes:
        config: of this start; a dataclass with `output`.
        identity: configuration → what makes two starts the same run, by the names of the options, in one spelling of
            several that mean the same. All else may change between them.
        fingerprints: what each source of data holds, in the order in which they are named. None: not looked at yet.
        resume: the option that says whether a used folder may be used again, and its value.
        begin_anew: how one begins another run with the weights of this one.
        kind: of run, where several kinds have the same options.
        leftovers: other names that a start which failed may leave.
    """

    config: Any
    identity: Callable[[Any], Mapping[str, Any]]
    fingerprints: Callable[[], list[tuple[str, str]]] | None
    resume: tuple[str, str]
    begin_anew: str
    kind: str = ""
    leftovers: Collection[str] = ()

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.config.output)

    @property
    def header(self) -> str:
        """What a record starts with."""
        return HEADER + (f"# {self.kind}\n" if self.kind else "")

    def check(self) -> None:
        """Refuse an output folder that is not this run's; nothing is written."""
        folder = self.folder
        with read_errors_are_the_users(folder):
            has_record = (folder / RECORD).exists()
        if has_record:
            self._check_same_run(self._read_record())
            self._check_same_data()
        elif folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file.", "Choose a folder with `output`.")
        elif folder.exists() and any(entry.name not in self._harmless for entry in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no run.", "Choose another folder with `output`.")

    @property
    def _harmless(self) -> set[str]:
        return {*LEFT_BY_A_FAILED_START, *self.leftovers}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, the folder is there, can be written, is this run's, and no other start is at work in it."""
        with ExitStack() as held:
            with write_errors_are_the_users(self.folder, option="`output`"):
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock.alone_in(self.folder, "output"))
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
            self.check()  # again: the start that held it until now may have made it another run's
            yield

    def claim(self) -> list[str]:
        """Write the records, and return what changes in the configuration: from here on the folder holds this run.

        Called when all that a start can find wrong has been looked at, so that a mended start may differ.
        """
        changes = self._changes(self._read_record()) if (self.folder / RECORD).exists() else []
        with write_errors_are_the_users(self.folder, option="`output`"):
            data = json.dumps(self.fingerprints() if self.fingerprints else [], indent=1) + "\n"
            (self.folder / PARTIAL_RECORDS[DATA_RECORD]).write_text(data, encoding="utf-8")
            record = self.header + configs.dump(self.config)
            (self.folder / PARTIAL_RECORDS[RECORD]).write_text(record, encoding="utf-8")
            # When complete: a start that is killed here must not leave half a record in the way of the next, nor one
            # that alone says nothing about whose folder it is.
            for name, partial in PARTIAL_RECORDS.items():
                (self.folder / partial).replace(self.folder / name)
        return changes

    def _read_record(self) -> Any:
        record = self.folder / RECORD
        with read_errors_are_the_users(record):
            text = record.read_bytes()
        if not text.startswith(HEADER.encode()):
            raise UserError(
                f"{record} is not a record of a run, and would be written over.",
                "Choose another folder with `output`, or give that file another name.",
            )
        if not text.startswith(self.header.encode()):
            other = text.decode(errors="replace").splitlines()[1].removeprefix("# ")
            raise UserError(
                f"{self.folder} holds another run (`{other}`, not `{self.kind}`).",
                "Choose another folder with `output`.",
            )
        return configs.build(type(self.config), configs.read_yaml(record), str(record))

    def _check_same_run(self, before: Any) -> None:
        option, resume = self.resume
        if resume == "never":
            raise UserError(
                f"{self.folder} already holds a run, and {option} is `never`.",
                "Choose another folder with `output`, or `--resume auto` to continue it.",
            )
        here, there = self.identity(self.config), self.identity(before)
        changes = "; ".join(
            f"{name}: {value_of(before, name)!r} there, {value_of(self.config, name)!r} here"
            for name in here
            if here[name] != there[name]
        )
        if changes:
            raise UserError(
                f"{self.folder} holds another run ({changes}).",
                "Choose another folder with `output`, or restore these options to continue that run.",
            )

    def _check_same_data(self) -> None:
        """The options name the same data as ever; is it?"""
        record = self.folder / DATA_RECORD
        if self.fingerprints is None or not record.exists():
            return
        with read_errors_are_the_users(record):
            before = json.loads(record.read_text(encoding="utf-8"))
        # By their order: the same place may be spelt in another way now.
        pairs = zip(self.fingerprints(), before, strict=True)
        other = [prefix for (prefix, here), (_, there) in pairs if here != there]
        if other:
            raise UserError(
                f"{', '.join(other)} holds other data than the run in {self.folder} has read until now.",
                f"Restore it, or begin another run: another `output`, {self.begin_anew}",
            )

    def _changes(self, before: Any) -> list[str]:
        """`name before → now` for each option that is not as it was; those of the identity only look different."""
        same = {"output", *self.identity(self.config)}
        names = [leaf.path for leaf in configs.leaves(type(self.config)) if leaf.path not in same]
        pairs = ((name, value_of(before, name), value_of(self.config, name)) for name in names)
        return [f"{name} {_shown(there)} → {_shown(here)}" for name, there, here in pairs if there != here]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def value_of(config: Any, path: str) -> Any:
    """The value of an option by its dotted name."""
    return reduce(getattr, path.split("."), config)


def place(path: str | None) -> Any:
    """A folder in one spelling; a name that is no folder as it is."""
    return Path(path).resolve() if path and Path(path).is_dir() else path
