"""What every tuner of ours must do, one table for all of them."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_bridge.tuners.activation import Activation
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners import own
from tests.support import tiny

TUNERS = sorted(own.OPTIONS)
TOKENS = tiny.tokens(101)


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Any:
    return own.load(tiny_model("llama"))


@pytest.mark.parametrize("name", [name for name in TUNERS if name != "restuning-bypass"])
def test_a_new_tuner_changes_nothing(model: Any, name: str) -> None:
    before = own.logits(model, TOKENS)
    own.attach(model, name)
    torch.testing.assert_close(own.logits(model, TOKENS), before, rtol=0, atol=1e-4 if name == "side" else 1e-6)


@pytest.mark.parametrize("name", TUNERS)
def test_only_its_parameters_train(model: Any, name: str) -> None:
    base = own.bits(model)
    attached = own.attach(model, name)
    before = {key: param.detach().clone() for key, param in attached.parameters().items()}
    optimizer = torch.optim.AdamW([param for param in model.parameters() if param.requires_grad], lr=0.01)
    model.train()
    for _ in range(3):
        own.loss(model, TOKENS).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in base.items())
    still = [key for key, param in attached.parameters().items() if torch.equal(param, before[key])]
    assert still == []


@pytest.mark.parametrize("name", TUNERS)
def test_saved_and_loaded_gives_the_same_logits(model: Any, tiny_model: Callable[..., Path], name: str) -> None:
    attached = own.attach(model, name)
    own.disturb(attached)
    other = own.load(tiny_model("llama"))
    copied = own.attach(other, name)
    with torch.no_grad():
        for key, param in copied.parameters().items():
            param.copy_(attached.parameters()[key])
    plain = own.logits(own.load(tiny_model("llama")), TOKENS)
    assert torch.equal(own.logits(other, TOKENS), own.logits(model, TOKENS))
    assert not torch.allclose(own.logits(model, TOKENS), plain, atol=1e-3)


@pytest.mark.parametrize("name", TUNERS)
def test_merging_is_refused_with_the_reason(model: Any, name: str) -> None:
    attached = own.attach(model, name)
    with pytest.raises(UserError, match=f"`{name}` cannot be merged: .*\n  → "):
        attached.merge()


@pytest.mark.parametrize("name", TUNERS)
def test_detach_gives_the_model_back(model: Any, name: str) -> None:
    bits, config, before = own.bits(model), model.config.to_dict(), own.logits(model, TOKENS)
    attached = own.attach(model, name)
    own.disturb(attached)
    attached.detach()
    after = model.state_dict()
    assert list(after) == list(bits) and all(torch.equal(after[key], bits[key]) for key in bits)
    assert model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(own.logits(model, TOKENS), before)


@pytest.mark.parametrize("name", TUNERS)
def test_not_at_work_it_does_nothing(model: Any, name: str) -> None:
    before, activation = own.logits(model, TOKENS), Activation([name])
    own.disturb(own.attach(model, name, activation))
    with activation.only([]):
        assert torch.equal(own.logits(model, TOKENS), before)


def test_every_thread_gets_its_own_tuner(tiny_model: Callable[..., Path]) -> None:
    """All tuners on one base, a thread for each of them, at the same time."""
    shared, activation, alone = own.load(tiny_model("llama")), Activation(), {}
    for number, name in enumerate(TUNERS):
        single = own.load(tiny_model("llama"))
        own.disturb(own.attach(single, name), number)
        alone[name] = own.logits(single, TOKENS)
        own.disturb(own.attach(shared, name, activation), number)
    together: dict[str, list[torch.Tensor]] = {name: [] for name in TUNERS}
    start = threading.Barrier(len(TUNERS))

    def ask(name: str) -> None:
        with activation.only([name]):
            start.wait()
            together[name].extend(own.logits(shared, TOKENS) for _ in range(4))

    threads = [threading.Thread(target=ask, args=(name,)) for name in TUNERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in TUNERS:
        assert len(together[name]) == 4
        assert all(torch.equal(answer, alone[name]) for answer in together[name]), name


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", TUNERS)
def test_gradients_are_those_without_checkpointing(
    model: Any, tiny_model: Callable[..., Path], name: str, reentrant: bool
) -> None:
    other = own.load(tiny_model("llama"))
    ours, theirs = own.attach(model, name), own.attach(other, name)
    own.disturb(ours)
    own.disturb(theirs)
    other.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        other.enable_input_require_grads()
    for one in (model, other):
        own.loss(one.train(), TOKENS).backward()
    for key, param in ours.parameters().items():
        torch.testing.assert_close(theirs.parameters()[key].grad, param.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TUNERS)
def test_in_bf16(tiny_model: Callable[..., Path], name: str) -> None:
    model = own.load(tiny_model("llama"), torch.bfloat16)
    own.attach(model, name)
    output = model(TOKENS, labels=TOKENS, use_cache=False)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16 and output.logits.isfinite().all()


@pytest.mark.parametrize("name", TUNERS)
def test_generation_uses_the_cache(model: Any, name: str) -> None:
    own.disturb(own.attach(model, name))
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(TOKENS, **options)
    assert torch.equal(cached, model.generate(TOKENS, use_cache=False, **options))


@pytest.mark.parametrize("lora_first", [True, False])
@pytest.mark.parametrize("name", TUNERS)
def test_beside_lora(tiny_model: Callable[..., Path], name: str, lora_first: bool) -> None:
    """In any order: the same logits, and LoRA's tensors under the names that they have without the other tuner."""
    import peft

    answers, names = [], []
    for others in ([], [name]):
        model = own.load(tiny_model("llama"))
        torch.manual_seed(1)
        excluded = None if lora_first or not others else r"tuner_.*"
        config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], exclude_modules=excluded)
        if lora_first:
            peft.inject_adapter_in_model(config, model)
        for other in others:
            own.attach(model, other)
        if not lora_first:
            torch.manual_seed(1)
            peft.inject_adapter_in_model(config, model)
        for key, param in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.constant_(param, 0.01)
        answers.append(own.logits(model, TOKENS))
        names.append([key for key, _ in model.named_parameters() if "lora_" in key])
    assert names[0] == names[1]
    if name != "restuning-bypass":
        torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-4)


def test_two_of_one_name_are_refused(model: Any) -> None:
    own.attach(model, "adapter")
    with pytest.raises(UserError, match="already has a tuner `adapter`"):
        own.attach(model, "adapter")


def test_a_misspelt_module_is_named(model: Any) -> None:
    with pytest.raises(UserError, match=r"no module is called `dwn_proj`.*\n.*did you mean `down_proj`"):
        own.attach(model, "adapter", target_modules=["dwn_proj"])
    assert not hasattr(model, "tuner_adapter")
