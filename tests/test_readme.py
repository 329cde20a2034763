"""README's commands are run as they stand there, on a small model with small settings, and its tables are current.

A fenced block below `<!-- executed -->` is run; one below `<!-- executed: NAME -->` is written to that file.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import adapters, newcomer
from tests.support.readme_tables import README, filled

SMALL = {
    "Qwen/Qwen3-1.7B": "model",
    "sequence_length: 4096": "sequence_length: 32",
    "split: 990,10,0": "split: 90,10,0",
    "steps: 2000": "steps: 3",
    "global_batch_size: 64": "global_batch_size: 2\n  eval_batches: 1",
    "lr_warmup_steps: 100": "lr_warmup_steps: 1",
    "eval_interval_steps: 500": "eval_interval_steps: 2",
    "save_interval_steps: 500": "save_interval_steps: 2",
    "--dataset data/chat.jsonl": "--dataset chat.jsonl --template plain",
    "data/chat.jsonl": "chat.jsonl",
    "max_steps=2)": "max_steps=2, template='plain')",
    "--eval-steps 100": "--eval-steps 1",
    "--nproc 8": "--nproc 2",
    "--nproc-per-node 8": "--standalone --nproc-per-node 2",
}
"""What stands in README → what is run instead. Every entry has to occur."""

BLOCK = re.compile(r"<!-- executed(?:: (?P<file>\S+))? -->\n```\w+\n(?P<body>.*?)```", re.DOTALL)


def small(text: str) -> str:
    for large, little in SMALL.items():
        text = text.replace(large, little)
    return text


def test_the_commands_work(tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    assert [large for large in SMALL if large not in text] == []
    newcomer.tiny_model(tmp_path / "model")
    newcomer.texts(tmp_path / "books")
    (tmp_path / "chat.jsonl").write_text('{"instruction": "2 + 2?", "output": "4"}\n' * 2, encoding="utf-8")
    adapters.adapt(tmp_path / "model", tmp_path / "adapters" / "books", target_modules="all-linear")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}

    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("<!-- executed")
    for block in blocks:
        body = small(block["body"])
        if block["file"]:
            (tmp_path / block["file"]).write_text(body, encoding="utf-8")
        else:
            command = ["bash", "-euo", "pipefail", "-c", body]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"

    script = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 runs/qwen3-books/checkpoints/iter_0000003" in done.stdout

    done = subprocess.run([sys.executable, "tune.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/tuned/model"

    yaml = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    (tmp_path / "run.yaml").write_text(yaml.replace("lr: 1.0e-5", "lr: much"), encoding="utf-8")
    script = [sys.executable, "train.py"]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 2, done.stderr

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "qwen3-books")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "qwen3-books")
    assert model.generate(**tokenizer("In the beginning", return_tensors="pt"), max_new_tokens=4).shape[0] == 1


def test_the_tables_are_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text, "run `python -m tests.support.readme_tables`"


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)", README.read_text(encoding="utf-8")))
def test_links_lead_somewhere(target: str) -> None:
    assert (README.parent / target).exists()
