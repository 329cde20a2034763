"""A quantised model computes what its weights, given back in full, multiply to; and a gradient passes it whole."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_bridge.models.config import LoadingConfig
from hf_bridge.models.linear import linear_names
from hf_bridge.models.load import load_model
from hf_bridge.models.quantisation import QUANTISATIONS, check_trains
from hf_bridge.models.support import TABLE_2
from swift_mega.base.errors import UserError

TOKENS = torch.arange(20)[None]

TRAINING = [name for name, found in QUANTISATIONS.items() if found.cpu and found.trains]


def full(layer: Any) -> Tensor:
    """The weights [out, in] that a quantised layer stands for, by the library's own way back."""
    kind = type(layer).__name__
    if kind == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    if kind == "Linear8bitLt":
        # A row's int8 weights times its largest absolute value, over 127 (arXiv 2208.07339, section 2).
        state = layer.state  # where its first forward pass puts them
        return state.CB.float() * state.SCB[:, None] / 127
    return (layer.dequantize() if kind == "HQQLinear" else layer.weight.dequantize()).float()


def product(layer: Any, x: Tensor) -> Tensor:
    """Dequantise, then multiply. LLM.int8 also rounds activations, but for the features in which one is 6 or more."""
    if type(layer).__name__ == "Linear8bitLt":
        flat = x.half().float().flatten(0, 1)
        large = flat.abs() >= 6
        step = flat.masked_fill(large, 0).abs().amax(1, keepdim=True) / 127
        x = torch.where(large.any(0), flat, (flat / step).round() * step).view_as(x)
    return F.linear(x, full(layer), layer.bias)


@pytest.mark.parametrize("name", TRAINING)
def test_forward_is_dequantise_then_multiply(folder: Path, name: str) -> None:
    model = load_model(str(folder), LoadingConfig(quantization=name)).model
    assert type(model.lm_head) is nn.Linear and model.lm_head.weight.dtype == torch.float32
    found: list[tuple[str, Tensor, Tensor]] = []
    for path in linear_names(model):
        layer = model.get_submodule(path)
        layer.register_forward_hook(
            lambda layer, x, y, path=path: found.append((path, y, product(layer, x[0].detach())))
        )
    with torch.no_grad():
        model(TOKENS)
    assert len(found) == 14
    # LLM.int8 gives its product back in fp16: half a step of numbers from 8 on is 4e-3.
    tolerance = 5e-3 if name == "bnb-int8" else 1e-5
    for path, ours, reference in found:
        assert torch.allclose(ours, reference, atol=tolerance, rtol=tolerance), path


@pytest.mark.parametrize("name", TRAINING)
def test_lora_beside_it_trains_in_every_layer(folder: Path, name: str) -> None:
    """Also the first one, whose gradient has to pass all the others."""
    from peft import LoraConfig, get_peft_model

    model = load_model(str(folder), LoadingConfig(quantization=name)).model
    targets = linear_names(model)
    tuned = get_peft_model(model, LoraConfig(target_modules=targets, r=2, task_type="CAUSAL_LM"))
    tuned(TOKENS, labels=TOKENS).loss.backward()
    gradients = [p.grad for key, p in tuned.named_parameters() if "lora_B" in key]
    assert len(gradients) == len(targets) == 14
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_a_new_head_stays_exact(folder: Path) -> None:
    for name in ("bnb-nf4", "bnb-int8", "hqq-4", "torchao-int8"):
        model = load_model(str(folder), LoadingConfig(quantization=name, num_labels=2), "seq_cls").model
        assert type(model.score) is nn.Linear and type(model.score.weight) is nn.Parameter


def test_experts_stay_as_they_are_and_that_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("mixtral", vocab_size=300, num_key_value_heads=2, num_local_experts=2, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), LoadingConfig(quantization="bnb-nf4")).model
    assert {name.rpartition(".")[2] for name in linear_names(model)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    # 2 experts × 3 matrices to the 4 of attention.
    assert "leaves the experts as they are, 60%" in capsys.readouterr().out


def test_the_head_is_found_where_the_prefix_is_another(tiny_model: Callable[..., Path]) -> None:
    """transformers calls Llama 4's body `language_model`, and it is in `model`."""
    from transformers import AutoModelForCausalLM

    names = linear_names(AutoModelForCausalLM.from_pretrained(tiny_model("llama4")))
    assert len(names) > 4 and all(name.startswith("model.layers.") for name in names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bnb-nf5", r"did you mean `bnb-nf4`"),
        ("gptq", "made of a whole model beforehand"),
        ("eetq", r"kernels|needs a GPU"),
        ("fp8", r"kernels|needs a GPU"),
    ],
)
def test_what_cannot_be(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(str(folder), LoadingConfig(quantization=name))


def test_a_package_that_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"bitsandbytes[\s\S]*swift-mega\[qlora\]"):
        load_model(str(folder), LoadingConfig(quantization="bnb-nf4"))


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm"])
def test_a_folder_that_needs_a_package(changed: Callable[..., Path], method: str) -> None:
    made = changed(config={"quantization_config": {"quant_method": method, "bits": 4, "group_size": 64}})
    with pytest.raises(UserError, match=r"quantised already"):
        load_model(str(made), LoadingConfig(quantization="bnb-nf4"))
    if method == "aqlm":
        with pytest.raises(UserError, match=r"not installed.*aqlm[\s\S]*pip install"):
            load_model(str(made))


def test_a_saved_quantised_model(folder: Path, tmp_path: Path) -> None:
    first = load_model(str(folder), LoadingConfig(quantization="bnb-nf4"))
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path)).model
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, first.model(TOKENS).logits)
    with pytest.raises(UserError, match=r"quantised already \(bitsandbytes"):
        load_model(str(tmp_path), LoadingConfig(quantization="hqq-4"))


def test_nothing_trains_beside_rounded_activations() -> None:
    check_trains("bnb-nf4")
    with pytest.raises(UserError, match="no gradient passes"):
        check_trains("torchao-int8-int4")


def test_the_papers_table_2() -> None:
    from hf_bridge.models.qat import QAT, REFUSED

    paper = {"BNB": "QAT QLoRA PTQ", "HQQ": "QAT QLoRA", "EETQ": "QAT QLoRA", "AWQ": "QLoRA PTQ", "GPTQ": "QLoRA PTQ"}
    for name, row in (paper | {"AQLM": "QLoRA"}).items():
        ours = TABLE_2[name]
        assert {"QAT": bool(ours.qat), "QLoRA": bool(ours.qlora), "PTQ": ours.ptq} == {
            what: what in row.split() for what in ("QAT", "QLoRA", "PTQ")
        }
    for support in TABLE_2.values():
        assert set(support.qlora) <= {*QUANTISATIONS, "folder"}
        assert support.qat in REFUSED.values() if isinstance(support.qat, str) else set(support.qat) <= set(QAT)
