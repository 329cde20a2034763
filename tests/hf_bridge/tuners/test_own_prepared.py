"""Our tuners through `prepare_model`: trained, saved, loaded on another model, merged or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from hf_bridge.tuners.registry import MODULES
from hf_bridge.tuners.tuned import from_pretrained, prepare_model
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners import own
from tests.support import tiny

TOKENS = tiny.tokens(101)
OPTIONS = own.OPTIONS | {
    "longlora": {"target_modules": "all-linear"},
    "lisa": {},
    "galore": {"rank": 4},
    "q-galore": {"rank": 4},
    "neftune": {},
}


def config(name: str) -> Any:
    torch.manual_seed(0)
    return own.declared(name).config(**OPTIONS[name])


def trained(model: Any, tuners: dict[str, Any]) -> Any:
    tuned = prepare_model(model, tuners)
    groups = tuned.parameter_groups(0.01, 0.0) or [{"params": [torch.nn.Parameter(torch.zeros(1))]}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    model.train()
    for _ in range(2):
        own.loss(tuned, TOKENS).backward() if tuned.trainable.count else None
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return tuned


def test_every_one_of_ours_is_in_the_table() -> None:
    assert OPTIONS.keys() | {"unsloth", "lora+", "full"} == {
        name for name, module in MODULES.items() if module != "peft_tuners"
    }


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_saved_and_loaded_on_another_model(tiny_model: Callable[..., Path], name: str, tmp_path: Path) -> None:
    tuned = trained(own.load(tiny_model("llama")), {name: config(name)})
    tuned.save_pretrained(tmp_path)
    other = from_pretrained(own.load(tiny_model("llama")), tmp_path)
    assert torch.equal(own.logits(other, TOKENS), own.logits(tuned, TOKENS))
    changed = not torch.allclose(own.logits(tuned, TOKENS), own.logits(own.load(tiny_model("llama")), TOKENS))
    assert changed == (name != "neftune")


@pytest.mark.parametrize("name", ["longlora", "lisa", "galore", "q-galore", "neftune"])
def test_merged(tiny_model: Callable[..., Path], name: str, tmp_path: Path) -> None:
    tuned = trained(own.load(tiny_model("llama")), {name: config(name)})
    merged = tuned.merged().model
    torch.testing.assert_close(own.logits(merged, TOKENS), own.logits(tuned, TOKENS), rtol=1e-5, atol=1e-5)
    assert merged.config._attn_implementation == "sdpa"
    assert set(merged.state_dict()) == set(own.load(tiny_model("llama")).state_dict())
    merged.save_pretrained(tmp_path)
    assert torch.equal(own.logits(own.load(tmp_path), TOKENS), own.logits(merged, TOKENS))


@pytest.mark.parametrize("name", sorted(own.OPTIONS))
def test_beside_lora_only_lora_is_merged(tiny_model: Callable[..., Path], name: str) -> None:
    tuners = {name: config(name), "lora": LoraConfig(target_modules="all-linear")}
    tuned = trained(own.load(tiny_model("llama")), tuners)
    with tuned.using("lora"):
        expected = own.logits(tuned, TOKENS)
    with pytest.raises(UserError, match=f"`{name}` cannot be merged"):
        tuned.merged()
    tuned.detach(name)
    torch.testing.assert_close(own.logits(tuned, TOKENS), expected, rtol=0, atol=1e-6)
    merged = tuned.merged().model
    torch.testing.assert_close(own.logits(merged, TOKENS), expected, rtol=1e-5, atol=1e-5)


def test_noise_and_lora_are_merged_as_lora(tiny_model: Callable[..., Path]) -> None:
    tuners = {"lora": LoraConfig(target_modules=["q_proj"]), "neftune": config("neftune")}
    tuned = trained(own.load(tiny_model("llama")), tuners)
    merged = tuned.merged().model
    torch.testing.assert_close(own.logits(merged, TOKENS), own.logits(tuned, TOKENS), rtol=1e-5, atol=1e-5)
    assert torch.equal(own.logits(merged.train(), TOKENS), own.logits(merged.eval(), TOKENS))


def test_two_that_decide_alone_are_refused(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="both decide alone what the final norm gets"):
        prepare_model(own.load(tiny_model("llama")), {"side": config("side"), "bypass": config("restuning-bypass")})
