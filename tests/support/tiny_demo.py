"""The demo with a model of a few thousand weights: the same steps, other numbers.

python -m tests.support.tiny_demo FOLDER
"""

import sys
from pathlib import Path

import yaml

from examples.demo import Demo, Layout, run
from swift_mega.base import config as configs

MAKE_MODEL = (
    "import sys; from pathlib import Path; from tests.support import newcomer; newcomer.tiny_model(Path(sys.argv[1]))"
)


def tiny_demo(folder: Path) -> Demo:
    """A demo below `folder`; 4 heads, so that TP2 fits and TP3 does not."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = {
        "output": str(folder / "run"),
        "model": {"path": str(folder / "megatron")},
        "data": {"train": [str(folder / "data" / "kjv")], "sequence_length": 32},
        "optimizer": {"lr": 1e-2},
    }
    run_yaml = folder / "run.yaml"
    run_yaml.write_text(yaml.safe_dump(configs.merge(configs.read_yaml("examples/pretrain.yaml"), changes)))
    return Demo(
        run_yaml=run_yaml,
        model=folder / "model",
        model_command=("python", "-c", MAKE_MODEL, str(folder / "model")),
        impossible=Layout("TP3", ("--nproc", "3", "--tensor-model-parallel-size", "3")),
        first=Layout("TP2+SP", ("--nproc", "2", "--tensor-model-parallel-size", "2", "--sequence-parallel")),
        second=Layout("PP2", ("--nproc", "2", "--pipeline-model-parallel-size", "2")),
    )


if __name__ == "__main__":
    sys.exit(run(tiny_demo(Path(sys.argv[1]))))
