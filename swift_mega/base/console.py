"""What a person sees while something runs: lines of text and progress bars, from rank 0 only.

On a terminal a progress bar is drawn by tqdm and `say` prints above it. In a log file, where a bar
would be a page of carriage returns, the same call writes a plain line every `LOG_INTERVAL_S`, so
that a long job is neither silent nor noisy. Torch-free: the rank is read from the environment that
torchrun sets. tqdm is imported on first use, as `--help` would pay 50 ms for it.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from tqdm import tqdm

LOG_INTERVAL_S = 10.0
"""Seconds between two progress lines where there is no terminal."""

SCALES = "kMGTPEZY"
"""What tqdm writes behind a scaled number."""


class Progress(Protocol):
    """What `progress` hands to the body of its `with`."""

    def update(self, n: float = 1) -> object:
        """`n` more units are done."""

    def set_status(self, s: str) -> None:
        """Show `s` with the bar, on a line of its own: beside the numbers it would leave no room for the bar."""


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`, `1,000 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sized(nbytes: float) -> str:
    """Bytes for people to read: `2.1 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def is_main() -> bool:
    """True in rank 0, and in a process that no launcher started."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str = "") -> None:
    """Print `message` on stdout, above any progress bar; nothing on ranks other than 0."""
    if is_main():
        from tqdm import tqdm

        # Names of files need not be text, and not every terminal has every letter.
        encoding = sys.stdout.encoding or "utf-8"
        tqdm.write(message.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
        sys.stdout.flush()


@contextmanager
def progress(
    total: float | None, desc: str, unit: str = "it", unit_scale: bool = False, initial: float = 0
) -> Iterator[Progress]:
    """A progress bar over `total` units (None: unknown) that starts at `initial`, with rate and ETA, on stderr.

    `unit="B", unit_scale=True` counts bytes and shows kB, MB, GB. Ranks other than 0 show nothing.
    """
    from tqdm import tqdm

    if is_main() and not sys.stderr.isatty():
        lines = _PlainProgress(total, desc, unit, unit_scale, initial)
        yield lines
        lines.finish()
    else:
        bar = tqdm(
            total=total,
            desc=desc,
            unit=unit,
            unit_scale=unit_scale,
            initial=initial,
            disable=not is_main(),
            leave=None,  # a bar inside another one goes when it is full
            dynamic_ncols=True,
        )
        with contextlib.closing(_Bar(bar)) as both:
            yield both


class _Bar:
    """tqdm's bar, and below it a line for the status once there is one."""

    def __init__(self, bar: "tqdm[NoReturn]") -> None:
        self.bar = bar
        self.status: tqdm[NoReturn] | None = None
        self.update = bar.update

    def set_status(self, s: str) -> None:
        if self.status is None:
            self.status = type(self.bar)(bar_format="  {desc}", disable=self.bar.disable, dynamic_ncols=True)
        self.status.set_description_str(s)

    def close(self) -> None:
        self.bar.close()  # first: the line above is left as it is, and the status below it
        if self.status is not None:
            self.status.close()


class _PlainProgress:
    """A line every `LOG_INTERVAL_S` and one at the end; numbers are formatted as on tqdm's bars."""

    def __init__(self, total: float | None, desc: str, unit: str, unit_scale: bool, initial: float) -> None:
        self.total, self.desc, self.unit, self.unit_scale = total, desc, unit, unit_scale
        self.done = self.initial = initial
        self.status = ""
        self.started_s = self.printed_s = time.monotonic()

    def update(self, n: float = 1) -> None:
        self.done += n
        if time.monotonic() - self.printed_s >= LOG_INTERVAL_S:
            self._print(self._rate_and_eta())

    def set_status(self, s: str) -> None:
        self.status = s

    def finish(self) -> None:
        ended = "stopped after" if self.total is not None and self.done < self.total else "done in"
        self._print(f"{ended} {_duration(self._elapsed_s())}")

    def _elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def _rate_and_eta(self) -> str:
        per_s = (self.done - self.initial) / max(self._elapsed_s(), 1e-9)
        # Below one unit a second the time of one unit says more than a rate of 0.04.
        rate = f"{1 / per_s:.1f} s/{self.unit}" if 0 < per_s < 1 else f"{self._amount(per_s)}/s"
        if self.total is None or per_s == 0:
            return rate
        return f"{rate}, {_duration((self.total - self.done) / per_s)} left"

    def _print(self, tail: str) -> None:
        self.printed_s = time.monotonic()
        done = self._amount(self.done)
        if self.total is not None:
            share = 100 * self.done / self.total if self.total else 100.0
            done = f"{share:.0f}% {self._count(self.done)}/{self._amount(self.total)}"
        parts = [f"{self.desc}: {done}", tail, self.status]
        print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def _amount(self, value: float) -> str:
        """With the unit: `3 step`, or `1.05 MB` with `unit_scale`."""
        count = self._count(value)
        number = count.rstrip(SCALES)
        return f"{number} {count.removeprefix(number)}{self.unit}"

    def _count(self, value: float) -> str:
        from tqdm import tqdm

        if self.unit_scale:
            return str(tqdm.format_sizeof(value))
        return f"{value:.4g}" if value % 1 else f"{value:.0f}"


def _duration(seconds: float) -> str:
    from tqdm import tqdm

    return str(tqdm.format_interval(seconds))
