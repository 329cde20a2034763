"""CPU time of `--help` at every level, as a multiple of starting Python and doing nothing.

    python tests/bench/help_cost.py

Each figure is the median over interleaved runs of user and system time of the process and all it starts.
The goal is 0.15 CPU-seconds at most.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

REPEATS = 11
GOAL_CPU_S = 0.15
LEVELS = ("", "pretrain", "convert", "data", "data build", "data inspect", "bridge sft", "doctor")


def cpu_s(*command: str) -> float:
    """User and system seconds that `command` takes."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    """Measure, print, and fail above the goal."""
    program = str(Path(sys.executable).parent / "swift-mega")
    commands = {"python -c pass": [sys.executable, "-c", "pass"]}
    commands |= {f"swift-mega {level}".strip() + " --help": [program, *level.split(), "--help"] for level in LEVELS}
    runs: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(REPEATS):
        for name, command in commands.items():
            runs[name].append(cpu_s(*command))
    medians = {name: statistics.median(times) for name, times in runs.items()}
    for name, times in runs.items():
        print(f"{name:<34} {medians[name]:.3f} CPU-s  ({min(times):.3f} to {max(times):.3f})")
    nothing, worst = medians.pop("python -c pass"), max(medians.values())
    print(f"slowest --help ÷ python -c pass: {worst / nothing:.1f}   ({worst:.3f} CPU-s, goal {GOAL_CPU_S})")
    return 0 if worst <= GOAL_CPU_S else 1


if __name__ == "__main__":
    sys.exit(main())
