"""Tokens per second of a training run ÷ those of Hugging Face's Trainer on the same model. Goal ≥ 1.15.

    python tests/bench/hf_trainer.py [--micro-batch-size 1]

Each side is one process with all cores: ours a whole `pretrain` with its log line, metrics file and signal vote at
every step, theirs `transformers.Trainer` with its defaults (SDPA attention, fused AdamW) and a log entry at every
step, without a bar. They train in turn, a stretch of steps each, while the other sleeps; the first step of every
stretch and the first pair of stretches are left out. Same weights, samples and order, fp32, AdamW with the same
numbers on the same weights, clipping, constant learning rate: the losses of every step must agree to 1e-4, the
gradient norms to 1e-3, before a time counts. Theirs has its samples in memory; ours reads them from the files.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

SEQUENCE, GLOBAL_BATCH = 256, 4
PAIRS = 9
ADAMW = {"lr": 1e-3, "weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8, "clip_grad": 1.0}


def main() -> None:
    """Run both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batch-size", type=int, default=4, choices=(1, 2, 4))
    micro_batch_size = parser.parse_args().micro_batch_size
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    # Threads that spin while they wait make the side that has more of them look slow on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        pairs = measure(Path(folder), micro_batch_size)[1:]
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    ours, theirs = (GLOBAL_BATCH * SEQUENCE / statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"tokens/s ÷ Hugging Face Trainer, micro batch {micro_batch_size}: {statistics.median(ratios):.3f}", end=" ")
    print(
        f"({len(ratios)} pairs, half of them within {low:.3f}–{high:.3f}; {ours:,.0f} and {theirs:,.0f} tokens/s;",
        end=" ",
    )
    print("losses equal to 1e-4)")


def measure(folder: Path, micro_batch_size: int) -> list[tuple[float, float]]:
    """Seconds per step of (ours, theirs) for each pair of stretches."""
    from swift_mega import compat

    compat.install()
    from swift_mega.base.config import build
    from swift_mega.methods.config import PretrainConfig
    from swift_mega.methods.pretrain import pretrain
    from tests.bench import hf_side
    from tests.bench.inputs import STRETCH_STEPS, make_inputs
    from tests.bench.stretches import Stretches

    make_inputs(folder, SEQUENCE)
    steps = STRETCH_STEPS * PAIRS
    config = build(PretrainConfig, run_config(folder, micro_batch_size, steps))
    # A new process, not a fork: theirs must not inherit what ours has imported and redirected.
    spawn = multiprocessing.get_context("spawn")
    connection, theirs = spawn.Pipe()
    process = spawn.Process(target=hf_side.serve, args=(theirs, config, folder / "samples.pt"), daemon=True)
    process.start()
    theirs.close()
    stretches = Stretches(connection, folder / "samples.pt", config)
    pretrain(config, [stretches])
    process.join()
    return stretches.seconds_per_step


def run_config(folder: Path, micro_batch_size: int, steps: int) -> dict[str, Any]:
    """The run, as YAML has it."""
    return {
        "output": str(folder / "run"),
        "model": {"path": str(folder / "model")},
        "data": {"train": [str(folder / "data")], "sequence_length": SEQUENCE, "num_workers": 0},
        "train": {"steps": steps, "micro_batch_size": micro_batch_size, "global_batch_size": GLOBAL_BATCH},
        "optimizer": {**ADAMW, "lr_decay_style": "constant"},
        "log": {"tensorboard": False},
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
