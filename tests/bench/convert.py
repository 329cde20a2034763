"""Bytes per second of a conversion ÷ those of `cp` of the same bytes, both with fsync. Goal ≥ 0.75 each way.

    python tests/bench/convert.py                     on the disk that holds --folder (default: the temporary folder)
    python tests/bench/convert.py --folder /dev/shm

Makes a model of 3 GB in bfloat16 (a Llama of 1.5 billion parameters, two shards), converts it to Megatron and back,
and copies the same files with `cp --reflink=never`; both sides read from the page cache and end with an fsync. The
export must be the source, byte for byte. Prints the ratio of each direction (median of interleaved pairs), the peak
resident memory of the conversion as the operating system counts it, and what its imports cost.
"""

import argparse
import filecmp
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 20,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
SHARD_BYTES = 2_000_000_000
PAIRS = 3


def main() -> None:
    """Make the model, convert and copy in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer make a smaller model")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        # Not in this process: a child's peak memory is never below what its parent had in use when it began.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            nbytes = pool.apply(make_model, (root / "hf", args.layers))
        print(f"{nbytes / 1e9:.2f} GB of bfloat16 in {args.folder}")
        for direction, source, target in (("HF → Megatron", "hf", "megatron"), ("Megatron → HF", "megatron", "again")):
            measure(direction, root / source, root / target, nbytes, args.pairs)
        check_same(root / "hf", root / "again")
    print("the export is the source, byte for byte")


def measure(direction: str, source: Path, target: Path, nbytes: int, pairs: int) -> None:
    """Print the ratio of one direction; leaves the last result at `target`."""
    copied = target.with_name("copied")
    ratios, speeds, peaks = [], [], []
    for _ in range(pairs + 1):
        for folder in (target, copied):
            shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        ours, peak = run(
            [sys.executable, "-m", "swift_mega", "convert", str(source), str(target), "--max-shard-size", "2GB"]
        )
        shutil.rmtree(copied, ignore_errors=True)
        os.sync()
        copy = f"cp -r --reflink=never '{source}' '{copied}' && find '{copied}' -type f -exec sync {{}} +"
        theirs, _ = run(["sh", "-c", copy])
        ratios.append(theirs / ours)
        speeds.append(nbytes / ours)
        peaks.append(peak)
    shutil.rmtree(copied)
    ratios = sorted(ratios[1:])  # in the first pair the source was not in the page cache
    print(
        f"{direction} ÷ cp: {statistics.median(ratios):.2f} ({len(ratios)} pairs, {ratios[0]:.2f}–{ratios[-1]:.2f}; "
        f"{statistics.median(speeds[1:]) / 1e9:.2f} GB/s; peak memory {max(peaks) / 2**20:.0f} MiB)"
    )


def run(command: list[str]) -> tuple[float, int]:
    """Seconds that a command takes, and its peak resident memory in bytes."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        message = said.read().decode()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed: {message}")
    return seconds, usage.ru_maxrss * 1024


def make_model(folder: Path, layers: int) -> int:
    """A Hugging Face folder of random weights; its bytes."""
    from converters.families.llama import FAMILY
    from converters.stores import safetensors
    from converters.stores.files import write_json
    from converters.view import hf_tensors

    config = {**SHAPE, "num_hidden_layers": layers}
    arguments = FAMILY.megatron_arguments(config)
    dtypes = {rule.megatron: "bfloat16" for rule in FAMILY.rules_for(arguments)}
    store = safetensors.create(folder, hf_tensors(FAMILY, arguments, dtypes), SHARD_BYTES)
    random = np.random.default_rng(0)
    for name, spec in store.tensors.items():
        store.array(name)[...] = random.integers(0, 2**15, spec.shape, np.uint16)
    safetensors.finish(store)
    write_json(folder / "config.json", config)
    return sum(spec.nbytes for spec in store.tensors.values())


def check_same(one: Path, other: Path) -> None:
    """A ratio of times means nothing unless the work was done."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    _, differ, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    if differ or missing:
        sys.exit(f"the export is not the source: {differ + missing}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
