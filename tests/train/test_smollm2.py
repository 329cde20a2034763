"""The real thing: SmolLM2-135M trained on two layouts and exported is the model that Megatron said it was."""

import json
from pathlib import Path

import pytest
import yaml

from examples import summary
from examples.demo import SMOLLM2, Demo, perform, steps
from swift_mega.base import config as configs
from tests.support.distributed import ROOT
from tests.support.runs import values

pytestmark = pytest.mark.slow

STEPS = 6


def small(model: Path, folder: Path) -> Demo:
    """`make demo` with the same weights and text and fewer steps."""
    changes = {
        "output": str(folder / "run"),
        "model": {"path": str(folder / "megatron")},
        "data": {"train": [str(folder / "kjv")]},
        "train": {"steps": STEPS, "eval_batches": 2},
        "optimizer": {"lr_warmup_steps": 1},
    }
    run_yaml = folder / "run.yaml"
    run_yaml.write_text(yaml.safe_dump(configs.merge(configs.read_yaml(ROOT / SMOLLM2.run_yaml), changes)))
    return Demo(
        run_yaml=run_yaml,
        model=model,
        model_command=SMOLLM2.model_command,
        impossible=SMOLLM2.impossible,
        first=SMOLLM2.first,
        second=SMOLLM2.second,
        first_steps=STEPS // 2,
    )


def test_transformers_finds_the_losses_that_megatron_reported(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    demo = small(smollm2, tmp_path)
    for step in steps(demo):
        assert step.done() or perform(step, "pytest") == 0, step.title
    judged = [
        json.loads(file.read_text())["loss"] for file in (summary.before(demo.folder), summary.after(demo.folder))
    ]
    evaluated = values(Path(demo.config.output), "eval/loss")
    assert len(evaluated) == 3  # at the start, where the layout changed, at the end
    assert judged == pytest.approx([evaluated[0], evaluated[-1]], abs=1e-4)
    assert judged[1] < judged[0] - 0.05
