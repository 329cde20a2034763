"""Merging LoRA into a base of any format, against peft's own merging; the base is only read."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from converters.convert import convert
from converters.options import Options
from hf_bridge.tuners.tuned import prepare_model
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.hf_bridge.tuners.trained import config_of, logits, move
from tests.support.adapters import ADAPTERS, Adapter

from .reshape import load

MERGEABLE = [name for name in ADAPTERS if name != "bias"]


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(adapter.with_name("merged"))
    return load(adapter.with_name("merged"))


def hashes(folder: Path) -> dict[Path, str]:
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MERGEABLE)
def test_into_a_hugging_face_base(name: str, adapter: Adapter, tmp_path: Path) -> None:
    base, folder = adapter(name).parent / "base", adapter(name)
    before = hashes(folder.parent)
    convert(base, tmp_path / "merged", to="hf", options=Options(adapter=folder))
    assert hashes(folder.parent) == before
    found, expected = load(tmp_path / "merged"), merged_by_peft(base, folder)
    shutil.rmtree(folder.with_name("merged"))
    assert_close(found, expected)
    original = load(base)
    changed = {key for key in found if not torch.equal(found[key], original[key])}
    assert changed and len(changed) < len(found)


@pytest.mark.parametrize("name", ["every-linear", "dora", "experts", "latent"])
def test_by_way_of_megatron_is_the_same(name: str, adapter: Adapter, tmp_path: Path) -> None:
    base, folder = adapter(name).parent / "base", adapter(name)
    convert(base, tmp_path / "hf", to="hf", options=Options(adapter=folder))
    convert(base, tmp_path / "megatron", options=Options(adapter=folder))  # merged on the way there
    convert(tmp_path / "megatron", tmp_path / "there")
    convert(base, tmp_path / "plain")
    convert(tmp_path / "plain", tmp_path / "back", options=Options(adapter=folder))  # or on the way back
    for other in ("there", "back"):
        assert_close(load(tmp_path / other), load(tmp_path / "hf"))


def test_a_base_that_ranks_have_cut(adapter: Adapter, tmp_path: Path) -> None:
    """TP2 cuts rows of some weights and columns of others; DoRA needs whole rows."""
    base, folder = adapter("dora").parent / "base", adapter("dora")
    convert(base, tmp_path / "ranks", to="legacy", options=Options(target_tp=2, target_pp=2))
    convert(tmp_path / "ranks", tmp_path / "merged", options=Options(adapter=folder))
    convert(base, tmp_path / "expected", to="hf", options=Options(adapter=folder))
    assert_close(load(tmp_path / "merged"), load(tmp_path / "expected"))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_is_rounded_once(dtype: str | None, adapter: Adapter, tmp_path: Path) -> None:
    base, folder = adapter("attention").parent / "base", adapter("attention")
    convert(base, tmp_path / "bf16-megatron", options=Options(dtype="bfloat16"))
    convert(tmp_path / "bf16-megatron", tmp_path / "bf16")
    convert(tmp_path / "bf16", tmp_path / "merged", to="hf", options=Options(adapter=folder, dtype=dtype))
    found, weights = load(tmp_path / "merged"), load(tmp_path / "bf16")
    factors = load_file(folder / "adapter_model.safetensors")
    for name, weight in weights.items():
        expected = weight.float()
        module = name.removesuffix(".weight")
        if f"base_model.model.{module}.lora_A.weight" in factors:
            a, b = (factors[f"base_model.model.{module}.lora_{factor}.weight"] for factor in "AB")
            expected = expected + 6 / 4 * (b @ a)  # alpha / r
        expected = expected.to(torch.bfloat16 if dtype is None else torch.float32)
        assert found[name].dtype == expected.dtype
        torch.testing.assert_close(found[name], expected, rtol=1e-6 if dtype else 2**-8, atol=1e-6)
        if dtype is None:  # at most where two float32 sums fall on both sides of a half
            assert (found[name] != expected).float().mean() < 1e-3


def test_an_embedding(adapter: Adapter, tmp_path: Path) -> None:
    base = adapter("patterns").parent / "base"
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["embed_tokens", "q_proj"], r=2, lora_alpha=3
    )
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(str(tmp_path / "adapter"))  # with PEFT's copy of the embedding
    convert(base, tmp_path / "merged", to="hf", options=Options(adapter=tmp_path / "adapter"))
    expected = merged_by_peft(base, tmp_path / "adapter")
    assert_close(load(tmp_path / "merged"), expected)

    half = Options(adapter=tmp_path / "adapter", dtype="bfloat16")
    convert(base, tmp_path / "megatron", options=half)  # whose embedding has rows of padding
    convert(tmp_path / "megatron", tmp_path / "back")
    convert(base, tmp_path / "cast", to="hf", options=half)
    for folder in ("back", "cast"):
        found = load(tmp_path / folder)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor.bfloat16(), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("begun", ["pissa", "olora"])
def test_factors_that_belong_to_other_weights(begun: Any, adapter: Adapter, tmp_path: Path) -> None:
    base, folder = adapter("patterns").parent / "base", tmp_path / "tuned"
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=begun, target_modules=["q_proj"], r=4)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(tmp_path / "start"))
    model.peft_config["default"].init_lora_weights = begun
    with torch.no_grad():
        for parameter in (one for one in model.parameters() if one.requires_grad):
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    for source, options in ((base, Options(adapter=folder)), (folder, Options())):
        with pytest.raises(UserError, match=f"init_lora_weights '{begun}'.*\n.*path_initial_model_for_weight"):
            convert(source, tmp_path / "out", options=options)
    plain = tmp_path / "plain"
    model.save_pretrained(str(plain), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    convert(base, tmp_path / "merged", to="hf", options=Options(adapter=plain))
    convert(plain, tmp_path / "megatron")
    found, expected = load(tmp_path / "merged"), model.merge_and_unload().state_dict()
    for name in (name for name in found if "q_proj" in name):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_what_tuning_saves_belongs_to_the_base(kind: str, adapter: Adapter, tmp_path: Path) -> None:
    base = adapter("patterns").parent / "base"
    tuned = prepare_model(transformers.AutoModelForCausalLM.from_pretrained(base), {"mine": config_of(kind)})
    move(tuned, "mine")
    tuned.save_pretrained(tmp_path / "tuned")
    convert(base, tmp_path / "merged", to="hf", options=Options(adapter=tmp_path / "tuned"))
    convert(tmp_path / "tuned", tmp_path / "megatron")
    ids = torch.arange(16)[None]
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, ids), logits(tuned.model, ids), rtol=1e-4, atol=1e-4)


def test_tensors_that_stay_are_copied_and_what_is_computed_is_said(
    adapter: Adapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, folder = adapter("attention").parent / "base", adapter("attention")
    assert main(["convert", str(base), str(tmp_path / "merged"), "--to", "hf", "--adapter", str(folder)]) == 0
    assert (
        "6,144 elements are computed from the base and an adapter in float32, and rounded once to float32"
        in capsys.readouterr().out
    )
    before, after = load(base), load(tmp_path / "merged")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}


def test_mistakes(adapter: Adapter, tmp_path: Path) -> None:
    def refusal(base: Path, folder: Path) -> str:
        with pytest.raises(UserError) as error:
            convert(base, tmp_path / "merged", to="hf", options=Options(adapter=folder))
        assert not (tmp_path / "merged").exists()
        return str(error.value)

    def changed(name: str, **config: Any) -> Path:
        folder = tmp_path / f"{name}-{'-'.join(config)}"
        shutil.copytree(adapter(name), folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return folder

    base = adapter("attention").parent / "base"
    assert "lora_bias: it adds to biases" in refusal(adapter("bias").parent / "base", adapter("bias"))
    assert "works from a certain token on" in refusal(base, changed("attention", alora_invocation_tokens=[1, 2]))
    assert "of peft_type 'VERA'" in refusal(base, changed("attention", peft_type="VERA"))
    assert "The adapter is of another model" in refusal(adapter("every-linear").parent / "base", adapter("attention"))
    assert "no adapter as PEFT saves it" in refusal(base, base)
    assert "which is no layer of the base" in refusal(base, adapter("latent"))
    assert "--adapter means nothing for" in refusal(adapter("attention"), adapter("attention"))
    whole = changed("attention", modules_to_save=["embed_tokens"])
    tensors = {"base_model.model.model.embed_tokens.weight": load(base)["model.embed_tokens.weight"]}
    save_file(tensors, whole / "adapter_model.safetensors", metadata={"format": "pt"})
    assert "to which" in refusal(base, whole) and "ensure_weight_tying" in refusal(base, whole)
