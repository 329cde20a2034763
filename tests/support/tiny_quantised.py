"""Hugging Face folders with quantised weights, made of plain ones block by block with torch alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny

Tensors = dict[str, torch.Tensor]
PLAIN = ("norm", "embed_tokens", "lm_head", "mlp.gate.", "shared_head.head")
"""Parts of the names of tensors that stay as they are, as in the folders of DeepSeek and Qwen."""
GPT_OSS = {
    "vocab_size": 101,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "hidden_size": 96,
    "intermediate_size": 64,
}
"""MXFP4 needs sizes that 32 divides."""
HALVES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def in_blocks(tensor: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix as float8_e4m3fn, and the scale of each block."""
    rows, columns = block
    quantised = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-len(tensor) // rows), -(-tensor.size(1) // columns))
    for down in range(len(scales)):
        for across in range(scales.size(1)):
            box = slice(down * rows, (down + 1) * rows), slice(across * columns, (across + 1) * columns)
            scales[down, across] = tensor[box].float().abs().max() / 448
            quantised[box] = (tensor[box].float() / scales[down, across]).to(torch.float8_e4m3fn)
    return quantised, scales


def in_fours(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[…, rows, columns] as four-bit numbers, the first of two in the low half of a byte, and exponents."""
    groups = tensor.float().reshape(*tensor.shape[:-1], -1, 32)
    exponents = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
    nearest = (groups.abs() / exponents.exp2()).unsqueeze(-1).sub(torch.tensor(HALVES)).abs().argmin(-1)
    codes = (nearest + 8 * (groups < 0)).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents.squeeze(-1) + 127).to(torch.uint8)


def fp8(folder: Path, target: Path, block: tuple[int, int] | None, **said: Any) -> Path:
    """The folder with every matrix that is not `PLAIN` in blocks; scales are in a file of their own."""

    def quantise(tensors: Tensors) -> tuple[Tensors, Tensors]:
        values, scales = {}, {}
        for name, tensor in tensors.items():
            if tensor.dim() < 2 or any(part in name for part in PLAIN):
                values[name] = tensor
            else:
                values[name], found = in_blocks(tensor, block or (10**6, 10**6))
                scales[name + "_scale_inv"] = found if block else found[0, 0]
        return values, scales

    return quantised(folder, target, {"quant_method": "fp8", "weight_block_size": block, **said}, quantise)


def gpt_oss(folder: Path) -> Path:
    """A tiny gpt-oss in MXFP4."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("gpt_oss", **{**tiny.COMMON, **GPT_OSS})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.bfloat16().save_pretrained(folder / "plain")
    return mxfp4(folder / "plain", folder / "mxfp4")


def mxfp4(folder: Path, target: Path) -> Path:
    """gpt-oss with the experts' weights in fours, whose columns are the rows of the plain ones."""

    def quantise(tensors: Tensors) -> tuple[Tensors, Tensors]:
        values, scales = {}, {}
        for name, tensor in tensors.items():
            if name.endswith(("gate_up_proj", "down_proj")):
                values[name + "_blocks"], scales[name + "_scales"] = in_fours(tensor.transpose(1, 2))
            else:
                values[name] = tensor
        return values, scales

    return quantised(folder, target, {"quant_method": "mxfp4"}, quantise)


def quantised(
    folder: Path, target: Path, said: dict[str, Any], quantise: Callable[[Tensors], tuple[Tensors, Tensors]]
) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    (target / "model.safetensors").unlink()
    files = dict(
        zip(
            ("model-1.safetensors", "model-2.safetensors"),
            quantise(load_file(folder / "model.safetensors")),
            strict=True,
        )
    )
    for file, tensors in files.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in files.items() for name in tensors}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    return target
