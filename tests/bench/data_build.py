"""Speed of `data build` against tokenizing one document at a time, on the same cores.

    python -m tests.bench.data_build --tokenizer FOLDER [--engine tokenizers|gigatoken] [--megabytes 8] [--pairs 3]

The other side is the plain loop that most scripts are: `tokenizer(text)["input_ids"]` of transformers for each
row, then `IndexedDatasetBuilder.add_document`. Both sides start from a JSONL file with the tokenizer's files in
the page cache and include loading it; `.bin` and `.idx` of both must be equal before a time counts.

Prints the ratio of tokens per second (median of interleaved pairs, with the smallest and largest), and for
orientation the same against that loop spread over as many processes as cores, as Megatron-LM's own
preprocessing script does it.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import chain, cycle
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from transformers import AutoTokenizer

from examples.corpus import chapters
from swift_mega.data.build import build

_tokenizer: Any = None
"""Of a process of the spread-out loop."""


def main() -> None:
    """Measure and print."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.jsonl")
        write_corpus(corpus, options.megabytes << 20)
        sides: dict[str, Callable[[Path], None]] = {
            "data build": lambda prefix: _build(corpus, options, prefix),
            "one at a time": lambda prefix: one_at_a_time(corpus, options.tokenizer, prefix),
            f"one at a time × {options.cores} processes": lambda prefix: spread(corpus, options, prefix),
        }
        seconds = _interleaved(sides, Path(folder), options.pairs)
    ours = seconds.pop("data build")
    for name, theirs in seconds.items():
        ratios = sorted(other / mine for other, mine in zip(theirs, ours, strict=True))
        pairs = f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs"
        print(
            f"data build ({options.engine}, {options.cores} cores) ÷ {name}: {statistics.median(ratios):.2f} ({pairs})"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--engine", default="tokenizers", choices=("tokenizers", "gigatoken"))
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    options.cores = len(os.sched_getaffinity(0))
    return options


def write_corpus(path: Path, size: int) -> None:
    """Prose (chapters of the King James Bible) and code (the Python files of transformers) in turn, `size` bytes."""
    import transformers

    sources = sorted(Path(transformers.__file__).parent.rglob("*.py"))
    prose = (text for _, text in chapters())
    code = (file.read_text(encoding="utf-8") for file in sources)
    with path.open("w", encoding="utf-8") as file:
        for text in chain.from_iterable(zip(cycle(prose), code, strict=False)):
            if text.strip():
                file.write(json.dumps({"text": text}) + "\n")
            if file.tell() > size:
                return


def _interleaved(sides: dict[str, Callable[[Path], None]], folder: Path, pairs: int) -> dict[str, list[float]]:
    """Seconds of each side, taken in turn so that a busy moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(pairs):
        outputs = []
        for side, (name, work) in enumerate(sides.items()):
            prefix = folder / f"{number}-{side}"
            started = time.perf_counter()
            work(prefix)
            seconds[name].append(time.perf_counter() - started)
            outputs.append((Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()))
        assert all(output == outputs[0] for output in outputs), "the files differ: no time counts"
        tokens = len(outputs[0][0]) // DType.size(DType.optimal_dtype(len(_tokenizer)))
        print("; ".join(f"{name} {tokens / times[-1] / 1e3:,.0f}k tokens/s" for name, times in seconds.items()))
    return seconds


def _build(corpus: Path, options: argparse.Namespace, prefix: Path) -> None:
    build([str(corpus)], options.tokenizer, prefix, workers=options.cores, engine=options.engine)


def one_at_a_time(corpus: Path, name: str, prefix: Path) -> None:
    """The plain loop."""
    _load(name)
    with corpus.open(encoding="utf-8") as lines:
        _write(map(encode, lines), prefix)


def spread(corpus: Path, options: argparse.Namespace, prefix: Path) -> None:
    """The plain loop over a pool."""
    _load(options.tokenizer)
    with corpus.open(encoding="utf-8") as lines, multiprocessing.get_context("fork").Pool(options.cores) as pool:
        _write(pool.imap(encode, lines, 32), prefix)


def _load(name: str) -> None:
    global _tokenizer
    _tokenizer = AutoTokenizer.from_pretrained(name)


def encode(line: str) -> list[int]:
    """The ids of one row, with the end-of-document id."""
    ids: list[int] = _tokenizer(json.loads(line)["text"])["input_ids"]
    return [*ids, _tokenizer.eos_token_id]


def _write(documents: Iterable[list[int]], prefix: Path) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(len(_tokenizer)))
    for ids in documents:
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


if __name__ == "__main__":
    main()
