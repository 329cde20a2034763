"""The usual way to convert, by building the model, ÷ ours: time, and peak memory. Goal: ≥ 4 times, ≥ 20 times.

    python tests/bench/convert_peer.py [--layers 20] [--folder /dev/shm]

The peer ought to be Megatron-Bridge, but it requires TransformerEngine for CUDA 13, mamba-ssm and causal-conv1d,
which do not install without NVIDIA's compiler. So it is what such tools do, with megatron-core alone and without
needless work: megatron-core's GPTModel is built without drawing initial weights, the Hugging Face tensors are copied
into it, and `megatron.core.dist_checkpointing.save` writes it. Both start a process of their own, read from the page
cache and end with the checkpoint on the disk; the checkpoints must hold the same tensors, byte for byte.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

PAIRS = 3


def main() -> None:
    """Convert in turn, compare, print."""
    from tests.bench.convert import SHAPE, make_model, run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer make a smaller model")
    parser.add_argument("--by-building", nargs=2, metavar=("SRC", "DST"), type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.by_building:
        by_building(*args.by_building)
        return
    times, peaks = [], []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            nbytes = pool.apply(make_model, (root / "hf", args.layers))
        for _ in range(PAIRS):
            ours, theirs = root / "ours", root / "theirs"
            os.sync()
            seconds, peak = run([sys.executable, "-m", "swift_mega", "convert", str(root / "hf"), str(ours)])
            os.sync()
            building = [sys.executable, __file__, "--by-building", str(root / "hf"), str(theirs)]
            seconds_theirs, peak_theirs = run(building)
            run([sys.executable, "-m", "swift_mega", "convert", "verify", str(ours), str(theirs)])
            shutil.rmtree(ours)
            shutil.rmtree(theirs)
            times.append(seconds_theirs / seconds)
            peaks.append(peak_theirs / peak)
    times.sort()
    print(f"{nbytes / 1e9:.2f} GB: building the model ÷ ours: {statistics.median(times):.1f} times as long", end=" ")
    print(f"({PAIRS} pairs, {times[0]:.1f}–{times[-1]:.1f}), {statistics.median(peaks):.0f} times the memory", end=" ")
    print("(without the processes it forks); the same checkpoint")


def by_building(source: Path, target: Path) -> None:
    """Convert `source` with megatron-core's model and its checkpointing."""
    from swift_mega import compat

    compat.install()
    from megatron.core import dist_checkpointing

    from converters import checkpoint
    from swift_mega.base.config import build
    from swift_mega.methods.config import PretrainConfig
    from swift_mega.model.build import build_model
    from swift_mega.model.weights import load_hf
    from swift_mega.parallel import groups
    from swift_mega.parallel.config import ParallelConfig

    groups.initialize(ParallelConfig(), seed=1)
    run = {"output": "-", "model": {"path": str(source), "precision": "bf16"}, "data": {}, "train": {"steps": 1}}
    config = build(PretrainConfig, run)
    (chunk,) = build_model(checkpoint.read_config(source), config.model, config.parallel, config.train, 8)
    load_hf([chunk], source)
    folder = target / checkpoint.RELEASE
    folder.mkdir(parents=True)
    dist_checkpointing.save(chunk.sharded_state_dict(), str(folder))
    checkpoint.copy_hf_files(source, folder / checkpoint.HF)
    checkpoint.write_tracker(target, None)
    groups.shutdown()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
