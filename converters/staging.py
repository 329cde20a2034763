"""The folder in which a target is put together, and how it gets the target's name."""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from converters import checkpoint
from swift_mega.base.console import say
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users


class Unfinished(UserError):
    """Nothing is wrong with what was done; it can be gone on with."""


class Vanished(UserError):
    """The folder in which the target is put together is gone, or another conversion has begun in it."""


def staging_of(source: Path, target: Path) -> Path:
    """Where the target is put together: beside it, under a name that says that it is unfinished.

    Raises:
        UserError: it cannot be where it is to be.
    """
    source, target = source.resolve(), target.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"{target} and the source {source} lie in one another.", "Choose a target elsewhere.")
    _mend(target)
    if _is_here(target):
        raise UserError(
            f"{target} is the folder that this is run in, which would be replaced by another one.",
            "Run it from elsewhere, or name a folder inside.",
        )
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file.", "Choose a folder as target.")
    if os.path.ismount(target):
        raise UserError(
            f"{target} is where a disk is mounted, and what is there cannot be replaced by a folder made beside it.",
            f"Choose a folder inside it, such as {target / 'converted'}.",
        )
    return target.with_name(f".{target.name}{checkpoint.UNFINISHED}")


def _is_here(folder: Path) -> bool:
    """Whether it is the working folder, or holds it."""
    with contextlib.suppress(FileNotFoundError):  # the working folder is gone itself
        here = Path.cwd().resolve()
        return folder.is_dir() and (folder == here or folder in here.parents)
    return False


def is_free(target: Path) -> bool:
    """Whether there is nothing to lose."""
    return not target.is_dir() or not any(target.iterdir())


def check_free(target: Path, overwrite: bool) -> None:
    """Raises:
    UserError: the target is taken.
    """
    if not overwrite and not is_free(target):
        raise UserError(f"{target} is not empty.", "Choose another target, or --overwrite to replace it.")


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _mend(target: Path) -> None:
    """An earlier conversion may have been killed between its two renames."""
    if _replaced(target).exists() and not target.exists():
        _replaced(target).rename(target)


def _allow_the_same(folder: Path, as_in: Path) -> None:
    """Give a folder another one's group, mode and extended attributes, before anything is made in it that inherits
    them."""
    try:
        os.chown(folder, -1, as_in.stat().st_gid)  # first, since it takes away the bit by which it is inherited
    except PermissionError:
        say(f"{as_in} loses its group, {as_in.stat().st_gid}, which you are not in")
    shutil.copystat(as_in, folder)
    folder.chmod(folder.stat().st_mode | stat.S_IRWXU)


@contextlib.contextmanager
def _refusals_keep(staging: Path, target: Path) -> Iterator[None]:
    """What was put together is not lost where the system does not let it have its name."""
    try:
        yield
    except OSError as error:  # a mount that does not look like one is busy, a layer of a container another device
        _mend(target)
        raise Unfinished(
            f"{target} cannot be replaced: {error.strerror}.",
            f"All that was to be in it is complete in {staging}; move it from there to where it is to be.",
        ) from error


@contextlib.contextmanager
def renamed(staging: Path, target: Path, shared: bool = False, first: bool = True) -> Iterator[Callable[[], None]]:
    """What the body calls at last, to give the staging folder the target's name. A UserError in the body leaves
    nothing behind; an interruption leaves what was done, for the next attempt.

    Args:
        shared: other machines work in the folder, so that it stays whatever happens to this one.
        first: this is the machine that gives it the name.
    """
    target = target.resolve()
    with write_errors_are_the_users(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(_replaced(target), ignore_errors=True)

        if target.is_dir() and first:
            _allow_the_same(staging, target)

    def rename() -> None:
        with _refusals_keep(staging, target):
            if target.exists():
                target.rename(_replaced(target))
            staging.rename(target)
        shutil.rmtree(_replaced(target), ignore_errors=True)

    try:
        yield rename
    except Unfinished:
        raise
    except UserError:
        if not shared:
            shutil.rmtree(staging, ignore_errors=True)
        elif staging.exists():
            say(f"{staging} stays, for the other machines; the same commands go on from here (or remove it)")
        raise
    except KeyboardInterrupt:
        say(f"interrupted; the same command goes on from here (or remove {staging})")
        raise
