"""Install with pip, and show how far it is in one line: pip itself prints a page or nothing.

usage: python requirements/install.py VENV PIP_ARGUMENT...

Makes VENV when it is not there. Everything pip says is in VENV/install.log, and on stderr if it fails.
Standard library only: it runs before anything is installed.
"""

import re
import subprocess
import sys
import time
import venv
from pathlib import Path

LOG_INTERVAL_S = 10.0


def main(folder: Path, arguments: list[str]) -> int:
    """Run `pip install ARGUMENTS` in the environment `folder`; pip's exit code."""
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True, symlinks=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    start = time.monotonic()
    said: list[str] = []
    shown = Shown()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout
        for line in pip.stdout:
            said.append(line)
            if step := describe(line, sum("Collecting " in each for each in said)):
                shown.line(f"{step}, {time.monotonic() - start:.0f} s")
    with (folder / "install.log").open("a", encoding="utf-8") as log:
        log.writelines(said)
    failed = pip.returncode != 0
    shown.last(f"installing failed after {time.monotonic() - start:.0f} s" if failed else shown.text)
    if failed:
        sys.stderr.writelines(said[-40:])
    return pip.returncode


def describe(line: str, collected: int) -> str:
    """What pip is doing, from a line of its output; empty for lines that say nothing new."""
    if found := re.match(r"\s*Collecting ([\w.-]+)", line):
        return f"fetching packages: {collected}, {found[1]}"
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages"
    if line.startswith("Successfully installed"):
        return f"installed {len(line.split()) - 2} packages"
    return ""


class Shown:
    """One line that changes in place on a terminal; elsewhere a line every `LOG_INTERVAL_S` and the last."""

    def __init__(self) -> None:
        self.text = self.printed = ""
        self.printed_s = time.monotonic()

    def line(self, text: str) -> None:
        self.text = text
        if sys.stdout.isatty():
            print(f"\r\x1b[K{text}", end="", flush=True)
        elif text.startswith("unpacking") or time.monotonic() - self.printed_s >= LOG_INTERVAL_S:
            self.printed, self.printed_s = text, time.monotonic()
            print(text, flush=True)

    def last(self, text: str) -> None:
        if text != self.printed:
            print(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
