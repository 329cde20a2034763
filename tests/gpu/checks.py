"""The checks of `tests/gpu/run.py`. Imported after `compat.install()`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from converters import checkpoint
from swift_mega.base import metrics
from swift_mega.base.config import build, merge
from swift_mega.base.errors import UserError
from swift_mega.methods.config import PretrainConfig
from swift_mega.methods.pretrain import pretrain
from swift_mega.model.build import build_model
from swift_mega.model.config import ModelConfig
from swift_mega.model.logits import megatron_logits, transformers_logits
from swift_mega.model.weights import load_hf
from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig
from swift_mega.train.config import TrainConfig
from tests.bench.inputs import write_tokens
from tests.support import tiny as tiny_models
from tests.support.runs import values
from tests.train.test_resume import different_tensors, final

FP32 = {"local": 1e-4, "transformer_engine": 2e-2}
"""Largest absolute difference of a logit. TransformerEngine multiplies fp32 matrices in TF32."""
BF16_FACTOR = 2.0
"""Our bf16 logits may be this much further from fp32 than transformers' own bf16 logits are."""

LLAMA_3_2_1B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
TRAINING_BYTES = 50e9
"""Weights, gradients, master weights and moments of that model (22 GB), and activations of 4,096 tokens."""
WARMUP_STEPS = 5


def parity_fp32(folder: Path, implementation: str, tiny: bool) -> str:
    """Logits in fp32 against transformers' on the same device."""
    model, tokens = _model_and_tokens(folder)
    difference = _distance(_logits(model, tokens, implementation, "fp32"), transformers_logits(model, tokens))
    bound = FP32[implementation]
    assert difference <= bound, f"largest difference {difference:.1e}, above {bound:.0e}"
    return f"largest difference {difference:.1e} (bound {bound:.0e})"


def parity_bf16(folder: Path, implementation: str, tiny: bool) -> str:
    """Logits in bf16: as near to transformers' fp32 logits as transformers' bf16 logits are."""
    model, tokens = _model_and_tokens(folder)
    exact = transformers_logits(model, tokens)
    ours = _distance(_logits(model, tokens, implementation, "bf16"), exact)
    theirs = _distance(transformers_logits(model, tokens, torch.bfloat16), exact)
    figures = f"from fp32: ours {ours:.1e}, transformers' bf16 {theirs:.1e} (bound {BF16_FACTOR:g} times that)"
    assert ours <= BF16_FACTOR * theirs, figures
    return figures


def training(folder: Path, implementation: str, tiny: bool) -> str:
    """bf16 training of a Llama-3.2-1B shape with random weights: speed and memory; the loss must fall."""
    if not tiny:
        _need_memory(TRAINING_BYTES)
    shape = {**tiny_models.COMMON, "vocab_size": 256} if tiny else LLAMA_3_2_1B
    sequence, steps, batch = (32, WARMUP_STEPS + 3, 2) if tiny else (4096, 20, 8)
    _write_config(folder / "model", shape)
    # A few of the tokens only, so that there is something to learn.
    write_tokens(folder / "data", shape["vocab_size"] // 16, (steps + 1) * batch * sequence, 2 * sequence)
    change = {
        "model": {"weights": "random"},
        "data": {"sequence_length": sequence},
        "train": {"steps": steps, "global_batch_size": batch},
        "optimizer": {"lr": 1e-3 if tiny else 1e-4},
    }
    pretrain(_config(folder, "run", implementation, change))
    lines = [line for line in metrics.read(folder / "run") if "loss" in line]
    first, last = lines[0]["loss"], lines[-1]["loss"]
    assert last < first, f"the loss rose from {first:.3f} to {last:.3f}"
    figure = {name: median(line[name] for line in lines[WARMUP_STEPS:] if name in line) for name in _speeds(lines)}
    mfu = f", MFU {figure['mfu']:.1%}" if "mfu" in figure else ""
    return (
        f"{figure['tokens_per_s']:,.0f} tokens/s, {figure['tflops_per_device']:.3g} TFLOP/s{mfu}, "
        f"{lines[-1]['peak_memory_gb']:.1f} GB; sequence {sequence}, {batch} a step, median of steps "
        f"{WARMUP_STEPS + 1}–{steps}, loss {first:.2f} → {last:.2f}"
    )


def resume(folder: Path, implementation: str, tiny: bool) -> str:
    """A run in bf16 with dropout, stopped and resumed, is the run that never stopped, to the bit."""
    tiny_models.save("llama", folder / "model")
    write_tokens(folder / "data", 99, 2000, 40)
    change = {
        "model": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
        "data": {"sequence_length": 16},
        "train": {"steps": 8, "global_batch_size": 4},
        "optimizer": {"lr": 1e-4, "lr_warmup_steps": 2},
    }
    half = merge(change, {"train": {"stop_after_steps": 4}})
    with _deterministic():
        for name, changes in (("straight", change), ("stopped", half), ("stopped", change)):
            pretrain(_config(folder, name, implementation, changes))
    for series in ("loss", "grad_norm"):
        straight, stopped = values(folder / "straight", series), values(folder / "stopped", series)
        assert straight == stopped, f"{series}: {straight} and {stopped}"
    different = different_tensors(final(folder / "straight"), final(folder / "stopped"))
    assert not different, f"{len(different)} tensors differ: {', '.join(different[:4])}"
    return "bitwise: 8 losses and norms, and every tensor of the checkpoint (bf16, dropout, deterministic kernels)"


def _model_and_tokens(folder: Path) -> tuple[Path, torch.Tensor]:
    model = tiny_models.save("llama", folder / "model")
    vocab_size: int = checkpoint.read_config(model)["vocab_size"]
    return model, tiny_models.tokens(vocab_size).to(torch.cuda.current_device())


def _logits(model: Path, tokens: torch.Tensor, implementation: str, precision: str) -> torch.Tensor:
    options = build(ModelConfig, {"path": str(model), "precision": precision, "transformer_impl": implementation})
    groups.initialize(ParallelConfig(), seed=1)
    try:
        chunks = build_model(
            checkpoint.read_config(model), options, ParallelConfig(), TrainConfig(steps=1), tokens.size(1)
        )
        load_hf(chunks, model)
        return megatron_logits(chunks, tokens)
    finally:
        groups.shutdown()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _config(folder: Path, name: str, implementation: str, change: dict[str, Any]) -> PretrainConfig:
    base: dict[str, Any] = {
        "output": str(folder / name),
        "model": {"path": str(folder / "model"), "precision": "bf16", "transformer_impl": implementation},
        "data": {"train": [str(folder / "data")], "split": "100,0,0", "num_workers": 0},
        "log": {"tensorboard": False},
    }
    return build(PretrainConfig, merge(base, change))


def _write_config(folder: Path, shape: dict[str, Any]) -> None:
    from transformers import LlamaConfig

    LlamaConfig(architectures=["LlamaForCausalLM"], **shape).save_pretrained(folder)


def _speeds(lines: list[dict[str, Any]]) -> list[str]:
    return [name for name in ("tokens_per_s", "tflops_per_device", "mfu") if name in lines[-1]]


def _need_memory(size: float) -> None:
    if not torch.cuda.is_available():
        raise UserError("On a CPU this takes hours.", "Add --tiny.")
    total = torch.cuda.get_device_properties(0).total_memory
    if total < size:
        raise UserError(f"It needs {size / 1e9:.0f} GB, this GPU has {total / 1e9:.0f} GB.", "Use a larger GPU.")


@contextmanager
def _deterministic() -> Iterator[None]:
    """Kernels that add in a fixed order: torch's, and TransformerEngine's attention (read when it is built)."""
    variable = "NVTE_ALLOW_NONDETERMINISTIC_ALGO"
    before = os.environ.get(variable)
    os.environ[variable] = "0"
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
