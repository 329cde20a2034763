"""What `convert --dry-run` prints: where everything goes, what it costs, and what it loses."""

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from converters.plan import Plan
from swift_mega.base.console import say
from swift_mega.base.writing import write_errors_are_the_users

if TYPE_CHECKING:
    from converters.convert import Conversion

PROBE_S = 2.0
PROBE_BYTES = 1 << 23
IMPORTS_BYTES = 64 << 20
"""What the program itself takes, rounded up."""


def say_forecast(conversion: "Conversion", target: Path, jobs: int) -> None:
    """Print the plan in numbers."""
    plan = conversion.plan
    sources = sorted({move.source for move in plan.moves})
    size = sum(conversion.target.files.values())
    speed = disk_speed(_existing(target))
    say(f"  reads   {_bytes(sum(path.stat().st_size for path in sources))} from {_files(len(sources))}")
    say(f"  writes  {_bytes(size)} into {_files(len(conversion.target.files))}, {len(conversion.tensors):,} tensors")
    say(f"  copies  {_bytes(plan.nbytes)} in {len(plan.moves):,} moves, {_bytes(plan.through_memory)} through memory")
    say(f"  zeros   {sum(plan.zeros.values()):,} elements{_named(plan, 'zeros')}")
    say(f"  drops   {sum(plan.unused.values()):,} elements of padding{_named(plan, 'unused')}")
    say(f"  memory  at most {_bytes(IMPORTS_BYTES + jobs * plan.largest_in_memory)}")
    say(f"  time    about {size / speed:,.0f} s at the {_bytes(speed)}/s that this disk writes now")
    free = _free(_existing(target))
    say(f"  space   {_bytes(free)} are free" + ("" if free >= size else f": {_bytes(size - free)} too few"))
    say("nothing was written (--dry-run)")


def disk_speed(folder: Path) -> float:
    """Bytes per second that go to the disk of `folder`, measured for `PROBE_S`."""
    block = os.urandom(PROBE_BYTES)
    with write_errors_are_the_users(folder), tempfile.TemporaryFile(dir=folder) as stream:
        start, written = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < PROBE_S:
            with contextlib.suppress(InterruptedError):
                written += os.write(stream.fileno(), block)
                os.fdatasync(stream.fileno())
    return max(1.0, written / elapsed)


def _existing(path: Path) -> Path:
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _named(plan: Plan, kind: str) -> str:
    names = sorted(getattr(plan, kind))
    return f" ({', '.join(names)})" if names else ""


def _files(count: int) -> str:
    return f"{count:,} file" + "s" * (count != 1)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
