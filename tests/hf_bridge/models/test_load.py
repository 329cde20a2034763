"""A model is loaded whole, or not at all and with the reason."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_bridge.models.config import LoadingConfig, Task
from hf_bridge.models.load import load_model
from swift_mega.base.errors import UserError
from tests.support import tiny, tiny_dense, tiny_hybrid, tiny_moe, tiny_quantised
from tests.support.tiny import COMMON

Changed = Callable[..., Path]

TOKENS = torch.arange(20)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def test_it_is_the_model_that_transformers_loads(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = load_model(str(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(loaded.model), logits(theirs))
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id == 0


def test_dtype(folder: Path) -> None:
    assert load_model(str(folder), LoadingConfig(dtype="bfloat16")).model.dtype == torch.bfloat16


def test_heads_are_new_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks: tuple[Task, ...] = ("seq_cls", "token_cls")
    for task in tasks:
        model = load_model(str(folder), LoadingConfig(num_labels=3), task).model
        assert logits(model).shape == ((1, 3) if task == "seq_cls" else (1, 20, 3))
        assert "New weights, to be trained: score" in capsys.readouterr().out


def test_a_saved_head_is_kept(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_model(str(folder), LoadingConfig(num_labels=3), "seq_cls")
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    capsys.readouterr()
    again = load_model(str(tmp_path), task="seq_cls")
    assert torch.equal(logits(again.model), logits(first.model))
    assert "New weights" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another shape score.weight \(\[4, 64\], not \[3, 64\]\)"):
        load_model(str(tmp_path), LoadingConfig(num_labels=4), "seq_cls")
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        load_model(str(tmp_path))


def test_a_new_head_needs_the_number_of_labels(folder: Path) -> None:
    with pytest.raises(UserError, match=r"num_labels"):
        load_model(str(folder), task="seq_cls")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"), r"lacks model\.layers\.1\.mlp\.up_proj"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), r"has, and the model has not, extra"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}), r"norm\.weight \(\[64\], not \[7\]\)"),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
def test_a_checkpoint_that_does_not_fit(changed: Changed, edit: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(str(changed(edit)))


def test_files_that_are_missing(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(str(tmp_path))
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(UserError, match="has no weights"):
        load_model(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    with pytest.raises(UserError, match=r"lacks 1\.safetensors"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="neither a folder here nor an id"):
        load_model(str(tmp_path / "elsewhere"))


def test_a_truncated_file(changed: Changed) -> None:
    made = changed()
    path = made / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="could not be loaded"):
        load_model(str(made))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a":', "not JSON"),
        ("[]", "no `model_type`"),
        ('{"model_type": "foo"}', r"no model of the type `foo`"),
        ('{"model_type": "foo", "auto_map": {"AutoConfig": "a.B"}}', "brings its own Python code"),
        ('{"model_type": "llama", "hidden_size": "x"}', "expected int, got str"),
    ],
)
def test_a_broken_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path))


def test_an_adapter_is_no_model(changed: Changed) -> None:
    made = changed()
    (made / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(UserError, match=r"an adapter[\s\S]*org/base"):
        load_model(str(made))


def test_a_vocabulary_that_is_too_small(changed: Changed) -> None:
    with pytest.raises(UserError, match=r"ids up to 299.*only 250"):
        load_model(str(changed(config={"vocab_size": 250})))


@pytest.mark.parametrize(
    ("loading", "message"),
    [
        (LoadingConfig(attn_implementation="fast"), "attn_implementation"),
        (LoadingConfig(device_map="nowhere"), "device_map"),
        (LoadingConfig(qat="bnb-nf4", quantization="bnb-nf4"), "trains exact weights"),
    ],
)
def test_what_cannot_be(folder: Path, loading: LoadingConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(str(folder), loading)


def test_a_cap_of_the_scores_needs_eager_attention(folder: Path, tmp_path: Path) -> None:
    """transformers' SDPA attention leaves it out: its logits are others."""
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    sizes = {**COMMON, "vocab_size": 300, "head_dim": 8, "attn_logit_softcapping": 2.0}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma2", **sizes)).save_pretrained(tmp_path)
    eager, sdpa = (
        logits(AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)) for name in ("eager", "sdpa")
    )
    assert (eager - sdpa).abs().max() > 1e-3
    assert torch.equal(logits(load_model(str(tmp_path)).model), eager)
    with pytest.raises(UserError, match="leaves out the cap"):
        load_model(str(tmp_path), LoadingConfig(attn_implementation="sdpa"))


def test_code_of_its_own(changed: Changed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path / "modules")])
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    made = changed(config={"model_type": "own", "auto_map": code})
    (made / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(UserError, match="brings its own Python code"):
        load_model(str(made))
    assert type(load_model(str(made), LoadingConfig(trust_remote_code=True)).model).__name__ == "Own"


def test_old_buffers_are_no_mistake(changed: Changed, folder: Path) -> None:
    """Llama 2's folders hold the frequencies of its rotary embedding."""
    frequencies = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in range(2)}
    found = load_model(str(changed(lambda tensors: tensors.update(frequencies)))).model
    assert torch.equal(logits(found), logits(load_model(str(folder)).model))


def loads_whole(name: str, made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model of a family, beside a tokenizer that is another's."""
    monkeypatch.setattr("hf_bridge.models.load.check_vocabulary", lambda *_: None)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, made)
    model = load_model(str(made)).model
    assert logits(model).isfinite().all(), name


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_quantised_weights_that_become_plain(
    kind: str, tiny_model: Callable[..., Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "fp8":
        made = tiny_quantised.fp8(tiny_model("qwen3-bias"), tmp_path / "fp8", (16, 16))
    else:
        made = tiny_quantised.gpt_oss(tmp_path)
    loads_whole(kind, made, folder, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*tiny_dense.MODELS, *tiny_moe.MODELS, *tiny_hybrid.MODELS, *tiny_hybrid.CONVERTED_ONLY]
)
def test_every_family_loads_whole(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not name.startswith(tuple(tiny_dense.REMOTE)):
        loads_whole(name, tiny.save(name, tmp_path / name), folder, monkeypatch)
