"""Many training runs in one launch of torchrun: process start and imports cost more than a tiny run.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.support.runs plan.json

`plan.json` is a list of `{"config": {...}, "fault": name or null}`. Each run leaves what a real one
leaves in its output folder; a UserError goes to `error.txt` beside it.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from swift_mega.base import metrics

Run = dict[str, Any]
"""A PretrainConfig as YAML has it, plus `fault`."""


def launch(plan: list[Run], nproc: int, folder: Path) -> None:
    """Do the runs of `plan` one after another on `nproc` processes; fails loudly if a process does."""
    file = folder / f"plan-{nproc}.json"
    file.write_text(json.dumps(plan), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(nproc), "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "tests.support.runs", str(file)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]


def values(output: Path, name: str) -> list[float]:
    """The series `name` of a run's metrics, one value a step."""
    return [line[name] for line in metrics.read(output) if name in line]


def main(plan: list[Run]) -> None:
    from swift_mega import compat

    compat.install()
    import torch.distributed as dist

    # One world for all runs: gloo cannot meet twice under the same names in torchrun's store.
    dist.init_process_group("gloo")
    from swift_mega.base.config import build
    from swift_mega.base.console import is_main
    from swift_mega.base.errors import UserError
    from swift_mega.methods.config import PretrainConfig
    from swift_mega.methods.pretrain import pretrain
    from tests.support import faults

    for run in plan:
        config = build(PretrainConfig, run["config"])
        with faults.FAULTS[run["fault"]]() if run.get("fault") else nullcontext():
            try:
                pretrain(config)
            except UserError as error:
                if is_main():
                    Path(config.output).mkdir(parents=True, exist_ok=True)
                    Path(config.output, "error.txt").write_text(str(error), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
