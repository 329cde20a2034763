"""The benchmark of tuners: its table, the claims, and that what it measures is so."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_bridge.experiments import measured_run
from hf_bridge.experiments.bench_tuners import bench_tuners, tune_config
from hf_bridge.experiments.config import BenchTunersConfig
from hf_bridge.experiments.contenders import BY_TUNER, CLAIMS, CONTENDERS
from hf_bridge.experiments.measured import Measured, broken, table
from hf_bridge.experiments.tuner_plot import draw
from hf_bridge.tuners.chosen import tuners_of
from swift_mega.base import config as configs
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.support import tiny_chat

PAPER = {
    one.tuner: Measured(
        train_loss=one.paper.train_loss,
        eval_loss=one.paper.eval_loss,
        trainable=round(1e6 * (one.paper.trainable_millions or 0)),
        parameters=7_721_320_000,
        memory_gib=one.paper.memory_gib,
        samples_per_s=one.paper.samples_per_s,
        steps=1,
    )
    for one in CONTENDERS
}
"""Table 4 itself."""


def config(folder: Path, **changes: object) -> BenchTunersConfig:
    """Six rows on a tiny model."""
    tiny_chat.save(folder / "model")
    rows = [{"query": f"{number}?", "response": "Hello there"} for number in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model": str(folder / "model"),
        "output": str(folder / "bench"),
        "galore_rank": 4,
        "data": {
            "dataset": [str(folder / "rows.jsonl")],
            "val_dataset": [str(folder / "rows.jsonl")],
            "cache_dir": str(folder / "cache"),
            "workers": 1,
        },
        "text": {"template": "chatml"},
        "train": {"max_steps": 2, "gradient_accumulation_steps": 2, "tensorboard": False},
        **changes,
    }
    return configs.build(BenchTunersConfig, values)


def test_the_defaults_are_table_3(tmp_path: Path) -> None:
    bench = BenchTunersConfig(model="m", output="o")
    run = tune_config(bench, BY_TUNER["lora"], tmp_path)
    train = run.train
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps, train.num_train_epochs) == (1, 16, 1)
    assert (run.length.max_length, train.learning_rate, train.gradient_checkpointing) == (2048, 5e-5, True)
    assert (train.weight_decay, train.warmup_ratio) == (0.01, 0.03)
    options = {one.tuner: one.tuner_options(bench) for one in CONTENDERS}
    assert options["lora"] == {"r": 8} and options["galore"] == options["q-galore"] == {"rank": 128}
    assert options["llamapro"] == {"num_new_blocks": 4} and options["lisa"] == {"activated_layers": 2}


@pytest.mark.parametrize("name", BY_TUNER)
def test_every_tuner_takes_its_options(name: str, tmp_path: Path) -> None:
    bench = BenchTunersConfig(model="m", output="o", lora_rank=5, galore_rank=5, llamapro_new_blocks=5)
    bench.lisa_activated_layers = 5
    one = BY_TUNER[name]
    (made,) = tuners_of(one.tuner, tune_config(bench, one, tmp_path).tuning).values()
    assert {getattr(made, own) for own in one.options} <= {5}


def test_table_4_breaks_one_claim_only() -> None:
    """The paper found LoRA slower than training everything."""
    flags = broken(PAPER)
    assert [(flag.claim.tuner, flag.claim.quantity, flag.claim.than) for flag in flags] == [
        ("lora", "samples_per_s", "full")
    ]
    assert flags[0].ratio == pytest.approx(0.95 / 1.43)
    assert all(claim.tuner in BY_TUNER and claim.than in BY_TUNER for claim in CLAIMS)


def test_the_table_marks_what_contradicts_a_claim() -> None:
    found = {**PAPER, "q-galore": PAPER["q-galore"]._replace(memory_gib=50.0)}
    del found["dora"]
    text = table(CONTENDERS, found, {"dora": "out of memory"})
    assert "| LoRA | 0.53 / 1.01 | 17.89 (0.23%) | 32.35 | 0.95 ⚑ |" in text
    assert "| Q-GaLore | 0.54 / 1.00 | 7721.32 (100.00%) | 50.00 ⚑ | 1.45 |" in text
    assert "| LISA | 0.62 / 1.06 | – | 31.11 | 2.66 |" in text
    assert "| DoRA | not measured: out of memory | | | |" in text
    assert "⚑ q-galore: memory is 1.06 of galore's, which should be ≤ 1.00" in text
    assert "SWIFT's Table 4 has 0.88." in text


def test_the_picture(tmp_path: Path) -> None:
    draw(CONTENDERS, PAPER, tmp_path / "tuners.png", "Table 4")
    assert (tmp_path / "tuners.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_of_a_tuner(tmp_path: Path) -> None:
    """Here in this process; the benchmark starts one for each."""
    run = tune_config(config(tmp_path), BY_TUNER["lora"], tmp_path / "run")
    (tmp_path / "job.json").write_text(json.dumps(configs.to_dict(run)), encoding="utf-8")
    measured_run.main(tmp_path / "job.json", tmp_path / "result.json")
    found = Measured(**json.loads((tmp_path / "result.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    linears = [one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and name != "lm_head"]
    assert found.trainable == 8 * sum(one.in_features + one.out_features for one in linears)
    assert found.parameters == found.trainable + sum(param.numel() for param in model.parameters())
    assert found.steps == 2 and found.samples_per_s > 0 and 0.05 < found.memory_gib < 20
    assert 0 < found.eval_loss < found.train_loss + 1


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = config(tmp_path)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.json").write_text(json.dumps({**configs.to_dict(bench), "lora_rank": 2}))
    with pytest.raises(UserError, match="another `lora_rank`"):
        bench_tuners(bench)
    argv = ["bridge", "bench-tuners", "--model", "m", "--output", str(tmp_path / "o"), "--dataset", "x.jsonl"]
    assert main(argv) == 2
    assert "nothing to evaluate on" in capsys.readouterr().err
    assert main([*argv, "--val-share", "0.5", "--tuners", "lorra"]) == 2
    assert "did you mean `lora`?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two tuners that work and one that refuses; the second start trains nothing again."""
    bench = config(tmp_path, tuners=["galore", "llamapro", "full"], llamapro_new_blocks=3)  # the model has 4 layers
    first = bench_tuners(bench)
    assert set(first.found) == {"galore", "full"} and "llamapro" in first.failed
    assert first.found["full"].trainable == first.found["galore"].trainable
    assert "| LLaMA-Pro | not measured: " in (tmp_path / "bench" / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "bench" / "tuners.png").is_file()
    assert not list((tmp_path / "bench").rglob("*.safetensors"))
    bench.tuners = ["galore", "full"]
    capfd.readouterr()
    assert bench_tuners(bench).found == first.found
    assert "━━" not in capfd.readouterr().out
