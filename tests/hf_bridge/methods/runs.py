"""Tuning runs of a tiny model on a few rows, and what they have left."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_bridge.methods.config import TuneConfig
from swift_mega.base import metrics
from swift_mega.base.config import build, merge
from tests.support import newcomer

COUNT = 22
"""Rows: with 6 a step 4 steps an epoch, the last of which is smaller."""


@dataclass(frozen=True)
class Ground:
    """A model, data, and a cache."""

    folder: Path
    model: Path

    def config(self, output: str, **changes: Any) -> TuneConfig:
        """A run of two epochs; `changes` as YAML has them."""
        values = {
            "model": str(self.model),
            "output": str(self.folder / output),
            "data": {"dataset": [str(self.folder / "chat.jsonl")], "cache_dir": str(self.folder / "cache")},
            "text": {"template": "plain"},
            "tuning": {"rank": 4, "alpha": 8, "dropout": 0.0},
            "train": {
                "num_train_epochs": 2,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 3,
                "learning_rate": 1e-3,
                "warmup_ratio": 0.25,
                "gradient_checkpointing": False,
                "tensorboard": False,
            },
        }
        return build(TuneConfig, merge(values, changes))


def ground(folder: Path) -> Ground:
    """Conversations of different lengths and weights, in two channels, and texts."""
    newcomer.tiny_model(folder / "model")
    rows = []
    for n in range(COUNT):
        weight = {} if n % 3 else {"loss_scale": 0.5 + n % 2}
        turns = [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "ab " * (n % 5 + 1), **weight}]
        rows.append({"messages": turns * (1 + n % 2), "channel": "odd" if n % 2 else "even"})
    _write(folder / "chat.jsonl", rows)
    _write(folder / "texts.jsonl", [{"text": text} for text in newcomer.TEXTS])
    return Ground(folder, folder / "model")


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def series(config: TuneConfig, name: str = "loss") -> list[float]:
    """A number of every step."""
    return [line[name] for line in metrics.read(Path(config.output)) if name in line]
