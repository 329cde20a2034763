"""LoRA and QLoRA of a 7B shape on one NVIDIA GPU: tokens per second and peak memory.

    python tests/gpu/tune.py                        # 24 GB or more; 30 GB of disk in $TMPDIR
    python tests/gpu/tune.py --device cpu --tiny    # the same code on a CPU in a minute: is the script itself right?

The weights are random, in bf16, and every sequence has 4,096 tokens; QLoRA's base is quantised to 4-bit NF4 while it is
loaded (extra `qlora`). Exit code 1 if a run failed, 2 if none could start.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

QWEN2_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
VOCABULARY = 152064
RUNS: dict[str, dict[str, Any]] = {"LoRA": {}, "QLoRA": {"quantization": "bnb-nf4"}}
"""Name → how the model is loaded."""
NEEDED_BYTES = {"LoRA": 22e9, "QLoRA": 14e9}
"""Weights, and activations of 4,096 tokens with checkpointing; logits of 152,064 columns are 2.5 GB in fp32, twice."""
STEPS, WARMUP_STEPS = 12, 4
SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs and print a line for each; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights, short sequences")
    parser.add_argument("--run", choices=RUNS, nargs="+", default=list(RUNS))
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("not run: torch sees no CUDA device")
        return 2
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", options.tiny)
        rows = write_rows(Path(folder) / "rows.jsonl", 32 if options.tiny else 4096)
        for name in options.run:
            outcomes.append(attempt(name, model, rows, Path(folder) / name, options.tiny))
            print(f"{name:<6} {outcomes[-1]}", flush=True)
    return 1 if any(text.startswith("FAILED") for text in outcomes) else 0 if any(map(passed, outcomes)) else 2


def passed(outcome: str) -> bool:
    """Whether it was run."""
    return not outcome.startswith("not run")


def attempt(name: str, model: Path, rows: Path, output: Path, tiny: bool) -> str:
    """Figures, or why there are none."""
    import torch

    from swift_mega.base.errors import UserError

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        if not tiny and total < NEEDED_BYTES[name]:
            return f"not run: it needs {NEEDED_BYTES[name] / 1e9:.0f} GB, this GPU has {total / 1e9:.0f} GB"
        torch.cuda.reset_peak_memory_stats()
    elif not tiny:
        return "not run: on a CPU this takes hours, add --tiny"
    try:
        return train(name, model, rows, output, tiny)
    except UserError as cannot:
        return f"not run: {cannot.what}"
    except Exception as error:  # noqa: BLE001 - out of memory, a kernel that fails: the other run still counts
        traceback.print_exc()
        return f"FAILED {type(error).__name__}: {error}".partition("\n")[0]


def train(name: str, model: Path, rows: Path, output: Path, tiny: bool) -> str:
    """A few steps of one sequence each, checkpointing on, and what they took."""
    from hf_bridge.methods.config import TuneConfig
    from hf_bridge.methods.sft import sft
    from swift_mega.base import metrics
    from swift_mega.base.config import build
    from swift_mega.compat.device import device_name

    length = 32 if tiny else 4096
    config = {
        "model": str(model),
        "output": str(output),
        "tuner": "lora",
        "loading": {"dtype": "float32" if tiny else "bfloat16", **RUNS[name]},
        "data": {"dataset": [str(rows)], "cache_dir": str(output.parent / "cache"), "workers": 1},
        "text": {"template": "plain", "loss_scale": "all"},
        "length": {"max_length": length, "long_rows": "truncate"},
        "train": {"max_steps": STEPS, "gradient_accumulation_steps": 1, "tensorboard": False},
    }
    sft(build(TuneConfig, config))
    lines = [line for line in metrics.read(output) if "loss" in line]
    assert lines[-1]["loss"] == lines[-1]["loss"], "the loss is no number"
    speed = median(line["tokens_per_s"] for line in lines[WARMUP_STEPS:])
    return (
        f"{speed:,.0f} tokens/s, {lines[-1]['peak_memory_gb']:.1f} GB; sequence {length}, steps "
        f"{WARMUP_STEPS + 1}–{STEPS}, {device_name()}"
    )


def write_model(folder: Path, tiny: bool) -> Path:
    """Random weights and a tokenizer of bytes."""
    import torch
    import transformers

    from tests.support import newcomer
    from tests.support.tiny import COMMON

    newcomer.tiny_model(folder)  # its tokenizer stays
    shape = {**COMMON, "vocab_size": 300} if tiny else {**QWEN2_7B, "vocab_size": VOCABULARY}
    config = transformers.Qwen2Config(**{**shape, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None})
    torch.manual_seed(SEED)
    dtype = torch.float32 if tiny else torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = transformers.Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    return folder


def write_rows(file: Path, tokens: int) -> Path:
    """Texts of at least so many tokens: random letters, a token or two each."""
    import random

    draw = random.Random(SEED)
    texts = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=3 * tokens)) for _ in range(STEPS)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
