"""Carrying out a conversion in a folder beside its target, alone or together with other machines.

Machines agree through the files in that folder alone: the first one reserves, each has a journal, and the first one
waits for all journals before it finishes.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from converters import checkpoint, engine
from converters.options import Options
from converters.plan import Move, Plan
from converters.staging import Unfinished, Vanished
from converters.targets import Conversion
from swift_mega.base.console import progress, say
from swift_mega.base.errors import UserError
from swift_mega.base.lock import alone_in, is_held
from swift_mega.base.writing import write_errors_are_the_users

WAIT_S = 3600.0
POLL_S = 0.2


def carry_out(conversion: Conversion, root: Path, options: Options) -> bool:
    """Reserve, copy, finish; what is done already is not done again. False: another machine will finish.

    Raises:
        Vanished: `root` is not there any more. To a machine but the first one it may have become the target.
    """
    state = root / f"{engine.JOURNAL}.plan"
    mark = engine.fingerprint(conversion.plan, conversion.target)
    try:
        return _carry_out(conversion, root, options, state, mark)
    except FileNotFoundError:
        if _says(state, mark):
            raise
        raise _vanished(root) from None


def _vanished(root: Path) -> Vanished:
    return Vanished(
        f"{root} was removed, or another conversion has begun in it.",
        "See that every machine is given the same SRC, DST and options, and start all of them again.",
    )


def _carry_out(conversion: Conversion, root: Path, options: Options, state: Path, mark: str) -> bool:
    portions = engine.parts(conversion.plan)
    if _says(state, mark):
        say(
            "  going on where the last attempt was interrupted"
            if options.nodes == 1
            else "  joining the other machines"
        )
        if options.node_rank == 0:
            state.touch()  # see _does_another
    elif options.node_rank == 0:
        _start(conversion, root, state, mark)
    else:
        _await(
            lambda: _says(state, mark) or not root.exists() or _does_another(root, state, mark),
            f"machine 0 to begin this conversion in {root}",
        )
        if _does_another(root, state, mark):
            raise Unfinished(
                "machine 0 does another conversion: its options, or a file of SRC (its path, size or time of change), "
                "differ from this machine's.",
                "Start every machine with the same options, and with the same SRC, shared or copied with `cp -p`.",
            )
        if not root.exists():
            raise _vanished(root)
    mine = _numbers(len(portions), options)
    total = sum(move.nbytes for number in mine for move in portions[number])
    with progress(total, conversion.title, "B", True) as bar:
        engine.run(portions, mine, engine.journal_of(root, options.node_rank), options.jobs, bar.update)
    if options.node_rank > 0:
        return False
    everything = set(range(len(portions)))
    _await(
        lambda: engine.finished_portions(root) >= everything or not _says(state, mark),
        "the other machines to do their share",
    )
    if not _says(state, mark):
        raise _vanished(root)
    _complete(conversion, root)
    return True


def share(plan: Plan, options: Options) -> list[Move]:
    """The moves that are this machine's; all, where so little is to be done that none is."""
    portions = engine.parts(plan)
    return [move for number in _numbers(len(portions), options) for move in portions[number]] or plan.moves


def is_needed(plan: Plan, options: Options) -> bool:
    """Whether enough is to be done that some of it is this machine's."""
    return bool(_numbers(len(engine.parts(plan)), options))


def _numbers(portions: int, options: Options) -> range:
    return range(options.node_rank, portions, options.nodes)


def _complete(conversion: Conversion, root: Path) -> None:
    if conversion.source.hf_files is not None:
        left = [checkpoint.CONFIG] if conversion.source.kind == "adapter" else []
        checkpoint.copy_hf_files(conversion.source.hf_files, conversion.hf_files, [*checkpoint.OURS, *left])
    for name, content in conversion.source.made.items():
        with write_errors_are_the_users(conversion.hf_files):
            conversion.hf_files.mkdir(parents=True, exist_ok=True)
            (conversion.hf_files / name).write_bytes(content)
    if conversion.source.tokenizer is not None:
        from converters.stores.gguf_tokenizer import save_tokenizer

        save_tokenizer(conversion.source.tokenizer, conversion.hf_files)
    if conversion.source.adaptable is None:
        checkpoint.state_dtype(conversion.hf_files, conversion.tensors)
    engine.finish(conversion.target)
    if conversion.to != "hf":
        with write_errors_are_the_users(root):
            checkpoint.write_tracker(root, _step(conversion.hf_files.parent))
    for path in root.glob(f"{engine.JOURNAL}*"):
        path.unlink()


def _step(iteration: Path) -> int | None:
    return None if iteration.name == checkpoint.RELEASE else int(iteration.name.removeprefix("iter_"))


def _says(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text(encoding="ascii") == text


def _does_another(root: Path, state: Path, mark: str) -> bool:
    """Whether machine 0 is at work, and not on this: what an earlier attempt left is older than its lock."""
    held = root / f"{LOCK}0"
    with contextlib.suppress(FileNotFoundError):
        said = state.read_text(encoding="ascii")  # empty for a moment while it is written
        begun = state.stat().st_mtime_ns >= held.stat().st_mtime_ns
        return begun and said not in ("", mark) and is_held(held)
    return False


def _await(condition: Callable[[], bool], what: str) -> None:
    """Look at the folder that the machines share until something has happened.

    Raises:
        UserError: it has not within `WAIT_S`.
    """
    give_up = time.monotonic() + WAIT_S
    if not condition():
        say(f"  waiting for {what}, {WAIT_S / 60:,.0f} minutes at most")
    while not condition():
        if time.monotonic() > give_up:
            raise Unfinished(
                f"waited {WAIT_S:,.0f} s for {what}.",
                "Start every machine with the same SRC, DST and options, and its own --node-rank; "
                "what is done is kept, and the same commands go on from here.",
            )
        time.sleep(POLL_S)


@contextlib.contextmanager
def alone(staging: Path, options: Options) -> Iterator[None]:
    """No other process puts the same target together, but for the other machines of this conversion."""
    with contextlib.ExitStack() as inside:
        while True:
            _make(staging)
            # Who was inside may have given the folder its final name meanwhile.
            with contextlib.suppress(FileNotFoundError):
                inside.enter_context(alone_in(staging, "DST", name=f"{LOCK}{options.node_rank}"))
                break
        yield


def _make(staging: Path) -> None:
    with write_errors_are_the_users(staging.parent):
        try:
            staging.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # below something like /proc
            raise UserError(f"{staging.parent} cannot be written: {error.strerror}.", "Choose another DST.") from None


LOCK = f"{engine.JOURNAL}.lock."
"""How the names of the locks begin; the number of the machine follows."""


def _start(conversion: Conversion, root: Path, state: Path, mark: str) -> None:
    with write_errors_are_the_users(root):
        state.unlink(missing_ok=True)  # before what it says of the rest is no longer so
        for path in root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith(LOCK):
                path.unlink()
        for folder in {path.parent for path in conversion.target.files}:
            folder.mkdir(parents=True, exist_ok=True)
    engine.reserve(conversion.target)
    state.write_text(mark, encoding="ascii")
