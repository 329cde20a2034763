"""`convert inspect` counts the parameters that transformers and peft count, whatever the files have besides."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from converters import checkpoint
from converters.contents import contents
from converters.convert import convert
from converters.options import Options
from tests.support import tiny_quantised
from tests.support.adapters import Adapter

TinyModel = Callable[..., Path]
NAMES = ("llama", "qwen2-tied", "qwen3-moe", "deepseek-v3", "qwen3-next", "nemotron-h")


def counted(folder: Path) -> int:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    persistent = model.state_dict()  # with the biases that choose experts, which are buffers
    buffers = sum(buffer.numel() for name, buffer in model.named_buffers() if name in persistent)
    return buffers + sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_those_of_the_model(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model(name)
    config = transformers.AutoConfig.from_pretrained(folder)
    expected = f"  {counted(folder):,} parameters"
    assert [*contents(folder)][-1] == expected
    convert(folder, tmp_path / "megatron", options=Options(vocab_divisible_by=config.vocab_size + 3))
    padding = 3 * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    assert [*contents(tmp_path / "megatron")][-1] == f"{expected}; {padding:,} elements pad the vocabulary"


def test_quantised_ones_count_as_what_they_stand_for(tiny_model: TinyModel, tmp_path: Path) -> None:
    plain = tiny_model("qwen3-bias", "bfloat16")
    folder = tiny_quantised.fp8(plain, tmp_path / "fp8", (7, 5))
    assert [*contents(folder)][-1] == [*contents(plain)][-1]


def stored_shapes(root: Path) -> list[tuple[int, ...]]:
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(checkpoint.latest(root)).read_metadata().state_dict_metadata.values()
    return [tuple(entry.size) for entry in metadata if hasattr(entry, "size")]


@pytest.mark.parametrize("lora", ["apart", "fused"])
def test_those_of_an_adapter(lora: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = adapter("attention")
    tensors = load_file(folder / "adapter_model.safetensors")
    there = sum(tensor.numel() for tensor in tensors.values())
    assert [*contents(folder)][-1] == f"  {there:,} parameters"
    options = Options(config=folder.parent / "base", lora=lora)  # type: ignore[arg-type]
    convert(folder, tmp_path / "megatron", options=options)
    # The zeros of ranks in which a row has no part, and of k, are stored; they are factors of the fused layer.
    expected = there if lora == "apart" else sum(map(math.prod, stored_shapes(tmp_path / "megatron")))
    assert [*contents(tmp_path / "megatron")][-1] == f"  {expected:,} parameters"


def test_what_was_trained_whole_is_not_counted_with_its_padding(adapter: Adapter, tmp_path: Path) -> None:
    folder = adapter("dora")
    there = sum(tensor.numel() for tensor in load_file(folder / "adapter_model.safetensors").values())
    options = Options(config=folder.parent / "base")
    convert(folder, tmp_path / "megatron", options=options)
    assert [*contents(tmp_path / "megatron")][-1].startswith(f"  {there:,} parameters; ")


def test_a_model_of_no_family(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"some.thing": torch.zeros(3, 1000)}, tmp_path / "model.safetensors")
    *_, line, total, parameters = contents(tmp_path)
    assert "some.thing    12 kB  float32   3 × 1000" in line and "12 kB in 1 file" in total
    assert parameters.startswith("  parameters are not counted: ")
