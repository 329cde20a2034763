"""Merging is exact: one rounding, the source untouched."""

import copy
from typing import Any

import peft
import pytest
import torch

from hf_bridge.tuners.merging import ulp
from hf_bridge.tuners.tuned import prepare_model
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners.trained import config_of, logits, move, tuned_with

LAYER = "model.layers.1.mlp.down_proj"


def test_ulp() -> None:
    values = torch.tensor([1.0, 1.5, 2.0, -3.0, 0.1, 1e-3], dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float32):
        start = values.abs().to(dtype)
        above = torch.nextafter(start, torch.full_like(start, torch.inf)).double() - start.double()
        assert torch.equal(ulp(start.double(), dtype), above)


def test_bf16_is_rounded_once(llama: Any) -> None:
    """PEFT's merge rounds the update, too, where the adapter is bf16 as the model is."""
    llama = llama.to(torch.bfloat16)
    in_place = copy.deepcopy(llama)
    tuned = tuned_with(llama, mine="lora")
    tuned.model.to(torch.bfloat16)
    layer = llama.get_submodule(LAYER)
    w, a, b = (
        one.detach().double() for one in (layer.base_layer.weight, layer.lora_A.mine.weight, layer.lora_B.mine.weight)
    )
    exact = w + 4.0 * b @ a
    merged = tuned.merged("mine")
    ours = merged.model.get_submodule(LAYER).weight
    assert ours.dtype == torch.bfloat16
    assert isinstance(ours, torch.Tensor)
    assert torch.equal(ours, exact.to(torch.bfloat16))

    theirs = tuned_with(in_place, mine="lora")
    theirs.activate("mine")
    theirs.model.to(torch.bfloat16)
    peft_weight = theirs.model.merge_and_unload().get_submodule(LAYER).weight  # type: ignore[operator]
    distance = {
        name: (one.double() - exact).abs() / ulp(exact, torch.bfloat16)
        for name, one in (("ours", ours), ("peft", peft_weight))
    }
    assert distance["ours"].max() <= 0.5
    assert distance["peft"].max() > 0.5  # the update is rounded, then the sum

    (report,) = [one for one in merged.rounding if one.name == f"{LAYER}.weight"]
    assert report.elements == exact.numel()
    assert report.changed == int((ours != w.to(torch.bfloat16)).sum())
    assert report.farthest_ulp == float(distance["ours"].max())
    assert report.mean_ulp == pytest.approx(float(distance["ours"].mean()))


def test_a_small_update_that_is_lost_is_told(llama: Any) -> None:
    tuned = tuned_with(llama.to(torch.bfloat16), mine="lora")
    with torch.no_grad():
        for name, parameter in tuned.attached["mine"].parameters().items():
            if "lora_B" in name:
                parameter.mul_(1e-4)
    merged = tuned.merged("mine")
    assert all(one.lost > 0 and one.changed + one.lost <= one.elements for one in merged.rounding)
    assert "stayed" in str(merged)


def test_several_in_one_layer(llama: Any, ids: torch.Tensor) -> None:
    tuned = tuned_with(llama, one="lora", two="ia3", three="lora", four="loha")
    layer = llama.get_submodule("model.layers.0.self_attn.v_proj")
    with tuned.using("one", "two", "three"):
        expected = logits(tuned, ids)
    merged = tuned.merged("one", "two", "three")
    assert layer is llama.get_submodule("model.layers.0.self_attn.v_proj")
    torch.testing.assert_close(logits(merged.model, ids), expected, rtol=0, atol=1e-4)
    with tuned.using():
        assert torch.equal(logits(tuned, ids), logits(tuned.merged().model, ids))


def test_modules_that_are_trained_whole(llama: Any, ids: torch.Tensor) -> None:
    tuned = prepare_model(llama, {"mine": config_of("lora", modules_to_save=["lm_head"])})
    move(tuned, "mine")
    merged = tuned.merged()
    assert {one.name for one in merged.rounding} >= {"lm_head.weight", f"{LAYER}.weight"}
    torch.testing.assert_close(logits(merged.model, ids), logits(tuned, ids), rtol=0, atol=1e-4)


def test_a_tied_weight_is_not_merged(tiny_model: Any) -> None:
    from transformers import AutoModelForCausalLM

    tied = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2-tied"))
    for options in ({"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}):
        tuned = prepare_model(tied, {"mine": config_of("lora", **options)})
        with pytest.raises(UserError, match="is tied to another layer"):
            tuned.merged()
        tuned.detach()


def test_a_merged_model_is_saved_as_any(llama: Any, ids: torch.Tensor, tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    tuned = tuned_with(llama, mine="dora")
    merged = tuned.merged("mine")
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, ids), logits(merged.model, ids))
    assert not isinstance(again, peft.PeftModel)
