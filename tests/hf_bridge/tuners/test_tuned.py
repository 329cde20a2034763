"""Several tuners on one model: chosen, per thread, moved away, kept, refused."""

import copy
import itertools
import json
import re
import threading
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_bridge.tuners.full import FullConfig
from hf_bridge.tuners.registry import MODULES
from hf_bridge.tuners.tuned import TunedModel, from_pretrained, prepare_model
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners.trained import config_of, logits, move, tuned_with
from tests.support.readme_tables import README

IN_LAYERS = ("vera", "lora", "pissa", "dora", "adalora", "ia3", "boft", "fourierft", "loha", "lokr")
"""VeRA first: PEFT wants to see plain layers when it comes."""


def alone(model: Any, kind: str, ids: torch.Tensor) -> torch.Tensor:
    """What a tuner gives on a model with no other, seeded by its name."""
    tuned = prepare_model(copy.deepcopy(model), {"mine": _config(kind)})
    move(tuned, "mine", sum(map(ord, kind)))
    return logits(tuned, ids)


def together(model: Any, *kinds: str) -> TunedModel:
    tuned = TunedModel(model)
    for kind in kinds:
        prepare_model(tuned, {kind: _config(kind)}, active=[])
        move(tuned, kind, sum(map(ord, kind)))
    return tuned


def _config(kind: str) -> Any:
    torch.manual_seed(sum(map(ord, kind)))
    return config_of(kind)


@pytest.mark.parametrize(
    "kinds",
    [(*IN_LAYERS, "prompt"), pytest.param(("vera", *IN_LAYERS[:0:-1], "prefix"), marks=pytest.mark.slow)],
    ids=["there", "back"],
)
def test_each_of_many_gives_what_it_gives_alone(kinds: tuple[str, ...], llama: Any, ids: torch.Tensor) -> None:
    plain = copy.deepcopy(llama)
    tuned = together(llama, *kinds)
    for kind in kinds:
        with tuned.using(kind):
            assert torch.equal(logits(tuned, ids), alone(plain, kind, ids)), kind
    with tuned.using():
        assert torch.equal(logits(tuned, ids), logits(plain, ids))
    tuned.detach()
    assert torch.equal(logits(llama, ids), logits(plain, ids))
    assert llama.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("first", IN_LAYERS)
def test_every_pair_in_one_layer(first: str, llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    expected = {kind: alone(llama, kind, ids) for kind in IN_LAYERS}
    for second in IN_LAYERS:
        if second in (first, "vera"):
            continue
        tuned = together(copy.deepcopy(llama), first, second)
        for kind in (first, second):
            with tuned.using(kind):
                assert torch.equal(logits(tuned, ids), expected[kind]), (first, second)
        tuned.attached[first].save(tmp_path / second)
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / second)
        torch.testing.assert_close(logits(theirs, ids), expected[first], rtol=1e-4, atol=1e-3)


def test_two_threads_have_a_tuner_each(llama: Any, ids: torch.Tensor) -> None:
    """They meet before every layer, so that each is in the middle of its forward pass when the other chooses."""
    plain = copy.deepcopy(llama)
    kinds = ("lora", "ia3", "prompt", "dora")
    tuned = together(llama, *kinds)
    expected = {kind: alone(plain, kind, ids) for kind in kinds}
    meeting = threading.Barrier(2, timeout=20)

    def meet(*_: Any) -> None:
        meeting.wait()

    for layer in llama.model.layers:
        layer.register_forward_pre_hook(meet)
    for pair in itertools.combinations(kinds, 2):
        found: dict[str, torch.Tensor] = {}

        def run(kind: str, found: dict[str, torch.Tensor] = found) -> None:
            with tuned.using(kind):
                meeting.wait()
                found[kind] = logits(tuned, ids)
                assert tuned.active == [kind]

        threads = [threading.Thread(target=run, args=(kind,)) for kind in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found[kind], expected[kind]) for kind in pair), pair
    assert tuned.active == []


def test_two_threads_generate(llama: Any, ids: torch.Tensor) -> None:
    tuned = together(llama, "lora", "prompt", "prefix")

    def answer(kind: str) -> torch.Tensor:
        with tuned.using(kind):
            answered: torch.Tensor = tuned.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
            return answered

    expected = {kind: answer(kind) for kind in tuned.attached}
    found: dict[str, list[torch.Tensor]] = {kind: [] for kind in tuned.attached}
    threads = [
        threading.Thread(target=lambda kind=kind: found[kind].extend(answer(kind) for _ in range(3))) for kind in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, expected[kind]) for kind, answers in found.items() for one in answers)
    assert all(len(answers) == 3 for answers in found.values())


def test_activate_is_for_all_threads(llama: Any, ids: torch.Tensor) -> None:
    plain = copy.deepcopy(llama)
    tuned = together(llama, "lora", "loha")
    tuned.activate("lora")
    seen: list[list[str]] = []
    thread = threading.Thread(target=lambda: seen.append(tuned.active))
    thread.start()
    thread.join()
    assert seen == [["lora"]]
    with tuned.using("loha"):
        tuned.activate("lora")
        assert tuned.active == ["loha"]
    tuned.activate("lora", "loha")
    both = logits(tuned, ids)
    tuned.deactivate("lora")
    assert torch.equal(logits(tuned, ids), alone(plain, "loha", ids))
    assert not torch.equal(both, logits(tuned, ids))
    tuned.deactivate()
    assert torch.equal(logits(tuned, ids), logits(plain, ids))


@pytest.mark.parametrize("to", ["cpu", "meta"])
def test_what_is_away_comes_back(to: Any, llama: Any, ids: torch.Tensor) -> None:
    tuned = together(llama, "lora", "ia3")
    parameters = tuned.attached["lora"].parameters()
    with tuned.using("lora"):
        expected = logits(tuned, ids)
    tuned.activate("ia3")
    tuned.offload("lora", to)
    assert {parameter.device.type for parameter in parameters.values()} == {to}
    logits(tuned, ids)
    with tuned.using("lora"):
        assert torch.equal(logits(tuned, ids), expected)
    assert {parameter.device.type for parameter in parameters.values()} == {"cpu"}
    assert {id(one) for one in parameters.values()} <= {id(one) for one in llama.parameters()}
    with pytest.raises(UserError, match="`ia3` is at work"):
        tuned.offload("ia3", to)
    with tuned.using("lora"), pytest.raises(UserError, match="`lora` is at work"):
        tuned.offload("lora", to)


def test_several_are_kept_apart(llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    plain = copy.deepcopy(llama)
    tuned = together(llama, "lora", "ia3")
    tuned.activate("ia3")
    tuned.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tuners.json").read_text()) == {
        "tuners": {"lora": "lora", "ia3": "ia3"},
        "active": ["ia3"],
    }
    assert not any("base_layer" in key for key in load_file(tmp_path / "lora" / "adapter_model.safetensors"))
    again = from_pretrained(copy.deepcopy(plain), tmp_path)
    assert again.active == ["ia3"]
    for kind in ("lora", "ia3"):
        with again.using(kind), tuned.using(kind):
            assert torch.equal(logits(again, ids), logits(tuned, ids))


def test_training_goes_on_from_a_folder(llama: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    plain = copy.deepcopy(llama)
    tuned = together(llama, "lora")
    tuned.save_pretrained(tmp_path)
    again = prepare_model(plain, {"lora": _config("lora")})
    again.load(tmp_path)
    with tuned.using("lora"):
        assert torch.equal(logits(again, ids), logits(tuned, ids))
    everything = sum(one.numel() for one in plain.parameters())
    assert again.trainable.count == pytest.approx(again.trainable.share * everything)


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_trl_finds_its_reference(kind: str, llama: Any, ids: torch.Tensor) -> None:
    """TRL's trainers take `default`, add a copy of it named `ref`, and choose between them, or disable all."""
    from trl.trainer.utils import use_adapter

    plain = copy.deepcopy(llama)
    tuned = prepare_model(llama, {"default": _config(kind), "other": _config("ia3")})
    model: Any = tuned.model
    assert isinstance(model, peft.PeftModel)
    model.add_adapter("ref", model.peft_config["default"])
    model.eval()  # its dropout is new
    parameters = dict(model.named_parameters())
    for name in parameters:
        if ".default." in name:
            parameters[name.replace(".default.", ".ref.")].data.copy_(parameters[name].data)
    for seed, name in enumerate(("default", "other")):
        move(tuned, name, seed)
    tuned_logits = logits(model, ids)
    with use_adapter(model, "ref"):
        torch.testing.assert_close(logits(model, ids), logits(plain, ids), rtol=1e-4, atol=1e-3)
    assert torch.equal(logits(model, ids), tuned_logits)
    with use_adapter(model, None):
        assert torch.equal(logits(model, ids), logits(plain, ids))
    assert torch.equal(logits(model, ids), tuned_logits)
    assert set(tuned.active) == {"default", "other"}


def test_a_copy_of_a_tuned_model_works(llama: Any, ids: torch.Tensor) -> None:
    tuned = together(llama, "lora")
    tuned.activate("lora")
    assert torch.equal(logits(copy.deepcopy(tuned.model), ids), logits(tuned, ids))


class _Refusals:
    lora = peft.LoraConfig(target_modules=["q_proj"])


@pytest.mark.parametrize(
    ("tuners", "message"),
    [
        ({"a": peft.LoraConfig(target_modules=["q_prj"])}, "no module `q_prj`.*\n.*did you mean `q_proj`"),
        ({"a": peft.LoraConfig(target_modules=r".*\.q_prj")}, "no module's whole name fits"),
        ({"a": peft.LoraConfig(target_modules="(")}, "is no regular expression"),
        ({"a": peft.LoraConfig(modules_to_save=["lm_haed"])}, "no module `lm_haed`.*\n.*did you mean `lm_head`"),
        ({"default": peft.LoraConfig(r=0)}, "PEFT refuses the options of `lora`: `r` should be"),
        ({"a.b": _Refusals.lora}, "`a.b` cannot be a tuner's name"),
        ({"layers": _Refusals.lora}, "`layers` cannot be a tuner's name"),
        ({"a": {"r": 8}}, "dict is no tuner's config"),
        ({"a": _Refusals.lora, "b": peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj"])}, "past what others"),
        ({"a": config_of("prompt"), "b": config_of("prefix")}, "both put virtual tokens"),
        ({"a": FullConfig(freeze=["(["])}, r"freeze='\(\[' is no regular expression"),
        ({"a": FullConfig(train_only=["(["])}, r"train_only='\(\[' is no regular expression"),
        (
            {"a": FullConfig(freeze=["embd_tokens"])},
            "no parameter matches `embd_tokens`.*\n.*did you mean `embed_token",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_stays(
    tuners: dict[str, Any], message: str, llama: Any, ids: torch.Tensor
) -> None:
    plain, kinds = logits(llama, ids), {type(module) for module in llama.modules()}
    trained = [parameter.requires_grad for parameter in llama.parameters()]
    with pytest.raises(UserError, match=message):
        prepare_model(llama, tuners)
    assert torch.equal(logits(llama, ids), plain)
    assert {type(module) for module in llama.modules()} == kinds
    assert [parameter.requires_grad for parameter in llama.parameters()] == trained


@pytest.mark.parametrize("kind", ["lora", "ia3", "prompt"])
def test_a_name_that_another_has_given_is_refused(kind: str, llama: Any, ids: torch.Tensor) -> None:
    first = prepare_model(llama, {"a": config_of(kind)})
    with pytest.raises(UserError, match=r"already has a tuner `a`, which another.*\n.*detach"):
        prepare_model(llama, {"a": config_of(kind)})
    first.detach()
    prepare_model(llama, {"a": config_of(kind)}).detach()
    peft.get_peft_model(llama, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match="already has a tuner `default`, which another"):
        prepare_model(llama, {"default": _Refusals.lora})


def test_unknown_names_have_a_nearest_one(llama: Any) -> None:
    tuned = together(llama, "lora")
    with pytest.raises(UserError, match="did you mean `lora`"):
        tuned.activate("loar")
    with pytest.raises(UserError, match="has a tuner `lora` already"):
        tuned.attach("lora", _config("lora"))


def test_a_folder_of_another_model_is_refused(llama: Any, tiny_model: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tuned_with(llama, mine="lora").save_pretrained(tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tiny_model("mistral-head-dim"))
    before = logits(other, ids)
    with (
        pytest.warns(UserWarning, match="was made for"),
        pytest.raises(UserError, match=r"is \[.*\], here it would be"),
    ):
        from_pretrained(other, tmp_path)
    assert torch.equal(logits(other, ids), before)
    with pytest.raises(UserError, match="has no tuner"):
        from_pretrained(llama, tmp_path / "nothing")


def test_two_optimizers_are_one_too_many(llama: Any) -> None:
    tuned = prepare_model(llama, {"one": _config("lora"), "two": _config("ia3")})
    for one in tuned.attached.values():
        one.optimizer = lambda groups, arguments: torch.optim.SGD(groups, lr=0.1)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="`one` and `two` each bring an optimizer"):
        tuned.optimizer(tuned.parameter_groups(0.1, 0.0), None)
    tuned.detach("two")
    assert isinstance(tuned.optimizer(tuned.parameter_groups(0.1, 0.0), None), torch.optim.SGD)


def test_full_and_partial(llama: Any, tmp_path: Path, ids: torch.Tensor) -> None:
    everything = prepare_model(llama, {"all": FullConfig()})
    assert everything.trainable.share == 1.0
    with pytest.raises(UserError, match="has changed the model's own weights"):
        everything.deactivate()
    everything.detach()
    some = prepare_model(llama, {"some": FullConfig(freeze=["embed_tokens", r"layers\.0\."], train_only=["mlp|embed"])})
    trained = {name for name, parameter in llama.named_parameters() if parameter.requires_grad}
    assert trained == {
        f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (1, 2, 3) for part in ("gate", "up", "down")
    }
    plain = copy.deepcopy(llama)
    move(some, "some")
    some.save_pretrained(tmp_path)
    assert torch.equal(logits(from_pretrained(plain, tmp_path), ids), logits(llama, ids))


def test_decay_is_transformers_own(llama: Any) -> None:
    from transformers import Trainer

    tuned = prepare_model(llama, {"all": FullConfig()})
    decayed = {
        id(one) for group in tuned.parameter_groups(1.0, 0.1) if group["weight_decay"] for one in group["params"]
    }
    names = {name for name, parameter in llama.named_parameters() if id(parameter) in decayed}
    assert names == set(Trainer.get_decay_parameter_names(None, llama))
    assert not any("norm" in name for name in names)


def test_the_head_of_a_classifier_is_trained_too(llama: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(llama.config)
    tuned = prepare_model(model, {"default": _config("lora")})
    assert any("score" in name for name in tuned.attached["default"].parameters())
    assert isinstance(tuned.model, peft.PeftModelForSequenceClassification)
    assert not isinstance(tuned.model.score, nn.Linear)


def test_what_readme_shows(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = README.read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(from peft import.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(shown.replace("Qwen/Qwen3-1.7B", str(tiny_model("qwen3-tied"))), {})
    assert peft.PeftConfig.from_pretrained("tuned/lora").r == 8
    named = set(re.findall(r"`([a-z0-9+-]+)`", text.partition("| PEFT's |")[2].partition("\n\n")[0]))
    assert named - {"freeze"} == MODULES.keys()
