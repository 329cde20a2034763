"""A training step ÷ the barest megatron-core loop on the same model: what our loop costs. Goal ≤ 1.02.

    python tests/bench/step.py                 one process
    python tests/bench/step.py TP2+SP          two processes, also PP2

Both run in the same processes on the same samples, one step of ours and one bare step in turn, after
checking that their losses and gradient norms are equal. Ours is a whole run: data loader, log line, metrics file and
signal vote at every step. The ratio is the median over the pairs.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP1": {},
    "TP2+SP": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_model_parallel_size": 2},
}
WARMUP_PAIRS, PAIRS = 4, 24
SEQUENCE, GLOBAL_BATCH = 256, 4


def main(layout: str) -> None:
    """Run the benchmark on as many processes as `layout` needs."""
    if layout not in LAYOUTS:
        sys.exit(f"unknown layout {layout}; known: {', '.join(LAYOUTS)}")
    processes = 2 if LAYOUTS[layout] else 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, __file__, layout, folder]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def rank(layout: str, folder: Path) -> None:
    """One rank of the benchmark."""
    from swift_mega import compat

    compat.install()
    import torch.distributed as dist

    dist.init_process_group("gloo")
    from swift_mega.base.config import build
    from swift_mega.methods.config import PretrainConfig
    from swift_mega.methods.pretrain import pretrain
    from swift_mega.parallel.agree import on_main
    from tests.bench.inputs import make_inputs
    from tests.bench.pairing import Pairing

    on_main(lambda: make_inputs(folder, SEQUENCE))
    config = build(
        PretrainConfig,
        {
            "output": str(folder / "run"),
            "model": {"path": str(folder / "model")},
            "data": {"train": [str(folder / "data")], "sequence_length": SEQUENCE, "num_workers": 0},
            "parallel": LAYOUTS[layout],
            "train": {"steps": WARMUP_PAIRS + PAIRS, "global_batch_size": GLOBAL_BATCH},
            # megatron-core exempts norms from weight decay in its scheduler, which the bare loop has not.
            "optimizer": {"lr": 1e-5, "lr_decay_style": "constant", "weight_decay": 0.0},
            "log": {"tensorboard": False},
        },
    )
    pairing = Pairing(config)
    pretrain(config, [pairing])
    if dist.get_rank() == 0:
        ratios = sorted(ours / bare for ours, bare in pairing.seconds[WARMUP_PAIRS:])
        low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        print(f"step ÷ bare megatron-core loop, {layout}: {statistics.median(ratios):.3f}", end=" ")
        print(f"({len(ratios)} pairs, half of them within {low:.3f}–{high:.3f}; losses and gradient norms equal)")
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if "RANK" in os.environ:
        rank(sys.argv[1], Path(sys.argv[2]))
    else:
        start = time.time()
        main(sys.argv[1] if len(sys.argv) > 1 else "TP1")
