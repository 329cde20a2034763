"""What `convert --dry-run` prints: where everything goes, what it costs, and what it loses."""

import os
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from swift_mega.base.console import counted, say, sized
from swift_mega.base.writing import free_bytes, write_errors_are_the_users

if TYPE_CHECKING:
    from converters.targets import Conversion

PROBE_S = 2.0
PROBE_BYTES = 1 << 23
PROBE_SHARE = 0.1
"""Of the free space: other programs write there, too."""
IMPORTS_BYTES = 64 << 20
"""What the program itself takes, rounded up."""


def say_forecast(conversion: "Conversion", staging: Path, jobs: int) -> None:
    """Print the plan in numbers, those of the disk that holds the folder in which the target is put together."""
    plan = conversion.plan
    sources = plan.sources
    size = sum(conversion.target.files.values())
    say(f"  reads   {sized(sum(path.stat().st_size for path in sources))} from {counted(len(sources), 'file')}")
    files, tensors = counted(len(conversion.target.files), "file"), counted(len(conversion.tensors), "tensor")
    say(f"  writes  {sized(size)} into {files}, {tensors}")
    say(f"  copies  {sized(plan.nbytes)} in {len(plan.moves):,} moves, {sized(plan.through_memory)} through memory")
    say(f"  zeros   {sum(plan.zeros.values()):,} elements{_named(plan.zeros)}")
    say(f"  drops   {sum(plan.unused.values()):,} elements of padding{_named(plan.unused)}")
    say(f"  memory  at most {sized(IMPORTS_BYTES + jobs * plan.largest_in_memory)}")
    speed = disk_speed(_existing(staging))
    if speed is None:
        say("  time    not measured, as the disk is all but full")
    else:
        say(f"  time    about {size / speed:,.0f} s at the {sized(speed)}/s that this disk writes now")
    free = free_bytes(staging)
    say(f"  space   {sized(free)} are free" + ("" if free >= size else f": {sized(size - free)} too few"))
    say("nothing was written (--dry-run)")


def disk_speed(folder: Path) -> float | None:
    """Bytes per second that go to the disk of `folder`, measured for `PROBE_S` or until it has `PROBE_SHARE` of what
    is free. None: that is too little to tell."""
    most = free_bytes(folder) * PROBE_SHARE
    if most < PROBE_BYTES:
        return None
    block = os.urandom(PROBE_BYTES)
    with write_errors_are_the_users(folder), tempfile.TemporaryFile(dir=folder) as stream:
        start, written = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < PROBE_S and written + PROBE_BYTES <= most:
            written += os.write(stream.fileno(), block)
            os.fdatasync(stream.fileno())
    return max(1.0, written / elapsed)


def _existing(path: Path) -> Path:
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def _named(tensors: Collection[str]) -> str:
    return f" ({', '.join(sorted(tensors))})" if tensors else ""
