"""How fast rows are packed, how full the sequences get, and how fast rows are read.

    python tests/bench/packing.py

Packing against a greedy packer in a few lines: the first open sequence with room, among the last 64, for rows in the
order of the data. Reading against a bare loop over the lines with `json.loads`. Both sides in turn, in one process;
what they give is checked before a time counts.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hf_bridge.data.packing import pack
from hf_bridge.data.recognise import Recognition
from hf_bridge.data.store import stored
from swift_mega.base.readers import Corpus

WINDOW = 64
"""Sequences that the greedy packer keeps open."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows to pack; a tenth of them is read")
    parser.add_argument("--capacity", type=int, default=4096)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    packing(options.rows, options.capacity, options.pairs)
    reading(options.rows // 10, options.pairs)


def packing(rows: int, capacity: int, pairs: int) -> None:
    """Rows of log-normal lengths: half of them below 245 tokens, a few as long as a sequence."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 1, rows), 1, capacity).astype(int)
    sides: dict[str, Callable[[], list[list[int]]]] = {
        "best fit": lambda: [part.tolist() for part in _parts(lengths, capacity)],
        "greedy": lambda: greedy(lengths.tolist(), capacity),
    }
    found, seconds = _in_turn(sides, pairs)
    fill = {}
    for name, sequences in found.items():
        assert sorted(row for part in sequences for row in part) == list(range(rows)), f"{name} loses rows"
        assert all(lengths[part].sum() <= capacity for part in sequences), f"{name} overfills"
        fill[name] = int(lengths.sum()) / (capacity * len(sequences))
    ratio = _ratio(seconds["greedy"], seconds["best fit"])
    print(f"fill: best fit {fill['best fit']:.2%}, greedy {fill['greedy']:.2%}")
    print(f"rows/s of packing ÷ greedy: {ratio}; {rows / min(seconds['best fit']):,.0f} rows/s")


def _parts(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    packed = pack(lengths, capacity)
    return np.split(packed.rows, packed.ends[:-1])


def greedy(lengths: list[int], capacity: int) -> list[list[int]]:
    """First fit in the order of the data."""
    done: list[list[int]] = []
    open_ones: list[tuple[list[int], int]] = []
    for row, length in enumerate(lengths):
        for number, (part, space) in enumerate(open_ones):
            if length <= space:
                part.append(row)
                open_ones[number] = part, space - length
                break
        else:
            open_ones.append(([row], capacity - length))
            if len(open_ones) > WINDOW:
                fullest = min(range(len(open_ones)), key=lambda number: open_ones[number][1])
                done.append(open_ones.pop(fullest)[0])
    return done + [part for part, _ in open_ones]


def reading(rows: int, pairs: int) -> None:
    """Chats of 200 words in one file, read into an empty cache by one process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "chat.jsonl")
        words = " ".join(["lorem", "ipsum"] * 50)
        lines = [{"messages": [_turn("user", f"{n} {words}"), _turn("assistant", words)]} for n in range(rows)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        caches = iter(Path(folder, str(number)) for number in range(pairs))
        sides: dict[str, Callable[[], list[str]]] = {
            "rows": lambda: _questions_of_rows(file, next(caches)),
            "bare": lambda: _questions_bare(file),
        }
        found, seconds = _in_turn(sides, pairs)
        assert found["rows"] == found["bare"], "the rows differ: no time counts"
        print(f"rows/s of reading, checking and caching ÷ bare json loop: {_ratio(seconds['bare'], seconds['rows'])}")
        print(f"{rows / min(seconds['rows']):,.0f} rows/s, {file.stat().st_size / min(seconds['rows']) / 1e6:.0f} MB/s")


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _questions_of_rows(file: Path, cache: Path) -> list[str]:
    return [row.messages[0].content for row in stored(Corpus([str(file)], text_key=None), Recognition(), cache, 1)]


def _questions_bare(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["messages"][0]["content"] for line in lines]


def _in_turn(sides: dict[str, Callable[[], Any]], pairs: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What each side gives and how long it took, in turn so that a busy moment of the machine meets all."""
    found, seconds = {}, {name: list[float]() for name in sides}
    for _ in range(pairs):
        for name, work in sides.items():
            started = time.perf_counter()
            found[name] = work()
            seconds[name].append(time.perf_counter() - started)
    return found, seconds


def _ratio(theirs: list[float], ours: list[float]) -> str:
    ratios = sorted(other / mine for other, mine in zip(theirs, ours, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs)"


if __name__ == "__main__":
    main()
