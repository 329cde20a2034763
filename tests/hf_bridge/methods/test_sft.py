"""Losses of a run against the barest loop, packed against unpacked, and what comes out of it."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_bridge.methods.pretrain import pretrain
from hf_bridge.methods.sft import sft
from swift_mega.base.errors import UserError
from tests.hf_bridge.methods import bare
from tests.hf_bridge.methods.runs import Ground, series
from tests.support.newcomer import TEXTS

NO_OPTIONS = {"rank": None, "alpha": None, "dropout": None}
"""`full` has none of those."""


class Start(TrainerCallback):
    """The weights before the first step."""

    def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Spoiled(TrainerCallback):
    """A third step and later ones that make everything worse."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        for parameter in model.parameters() if state.global_step > 2 else ():
            parameter.data.normal_(std=2.0)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_losses_are_those_of_a_bare_loop(tuner: str, ground: Ground, own_output: str) -> None:
    config = ground.config(own_output, tuner=tuner, tuning={} if tuner == "lora" else NO_OPTIONS)
    start = Start()
    outcome = sft(config, [start])
    model = bare.plain_model(config)
    if tuner == "lora":
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
        model = peft.get_peft_model(model, lora)
    model.load_state_dict(start.state)
    losses, norms = bare.train(config, model, epochs=2)
    assert outcome.step == len(losses) == 8
    assert series(config) == pytest.approx(losses, rel=1e-6)
    assert series(config, "grad_norm") == pytest.approx(norms, rel=1e-5)
    saved = AutoModelForCausalLM.from_pretrained(ground.model if tuner == "lora" else outcome.folder)
    if tuner == "lora":
        saved = peft.PeftModel.from_pretrained(saved, outcome.folder)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    assert transformers.AutoTokenizer.from_pretrained(outcome.folder).eos_token == "<|endoftext|>"


def test_a_prefix_lies_in_the_cache_that_checkpointing_would_turn_off(
    ground: Ground, own_output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for asked in (True, False):
        train = {"max_steps": 2, "gradient_checkpointing": asked}
        config = ground.config(f"{own_output}-{asked}", tuner="prefix", tuning=NO_OPTIONS, train=train)
        sft(config)
        losses.append(series(config))
        said = "Without gradient checkpointing: it turns off the cache of keys and values, in which `prefix` lies."
        assert (said in capsys.readouterr().out) is asked
    assert losses[0] == losses[1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_losses_they_have_alone(attention: str, ground: Ground, tmp_path: Path) -> None:
    losses = {}
    for packing in (False, True):
        config = ground.config(
            str(tmp_path / str(packing)),
            loading={"attn_implementation": attention},
            length={"max_length": 64, "packing": packing},
            train={"gradient_accumulation_steps": 22, "per_device_train_batch_size": 1},
        )
        sft(config)
        losses[packing] = series(config), series(config, "grad_norm")
    assert losses[True][0] == pytest.approx(losses[False][0], rel=1e-6)
    assert losses[True][1] == pytest.approx(losses[False][1], rel=1e-5)


def test_a_model_that_cannot_keep_packed_rows_apart_is_refused(ground: Ground, tmp_path: Path) -> None:
    words = transformers.AutoTokenizer.from_pretrained(ground.model)
    words.save_pretrained(tmp_path / "mamba")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 300}
    config = transformers.MambaConfig(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    run = ground.config(str(tmp_path / "out"), model=str(tmp_path / "mamba"), tuner="full", tuning=NO_OPTIONS)
    run.length.packing = True
    with pytest.raises(UserError, match="MambaForCausalLM"):
        sft(run)


def test_texts_are_trained_on_as_a_whole(ground: Ground, own_output: str) -> None:
    config = ground.config(
        own_output,
        tuner="full",
        data={"dataset": [str(ground.folder / "texts.jsonl")]},
        length={"max_length": 16},
        tuning=NO_OPTIONS,
        train={"max_steps": 1, "gradient_accumulation_steps": 100},
    )
    config.text.template = None
    pretrain(config)
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(ground.model), bare.plain_model(config)
    sums, count = 0.0, 0
    for text in TEXTS:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        for first in range(0, len(ids), 16):
            part = torch.tensor([ids[first : first + 16]])
            if part.shape[1] > 1:
                sums += float(model(part, labels=part).loss) * (part.shape[1] - 1)
                count += part.shape[1] - 1
    assert series(config) == pytest.approx([sums / count], rel=1e-6)


def test_evaluation_channels_and_the_best_checkpoint(
    ground: Ground, own_output: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = {"dataset": [f"{ground.folder / 'chat.jsonl'}#16"], "val_dataset": [str(ground.folder / "chat.jsonl")]}
    options = {"eval_steps": 1, "load_best": True, "early_stopping": 2, "save_total_limit": 1}
    config = ground.config(own_output, tuner="full", tuning=NO_OPTIONS, data=data, train=options)
    outcome = sft(config, [Spoiled()])
    assert sft(config, [Spoiled()]) == outcome
    said = capfd.readouterr()
    assert f"is finished: stopped early at step {outcome.step}" in said.out
    assert "Writing model shards" not in said.err
    held_out = series(config, "eval/loss")
    losses = held_out[1:]
    best = losses.index(min(losses)) + 1
    assert outcome.step == held_out.index(min(held_out)) + 2 < 6, "it ends two evaluations behind the best"
    model = AutoModelForCausalLM.from_pretrained(outcome.folder)
    config.data.dataset, config.data.val_dataset = config.data.val_dataset, []
    rows = bare.encoded(config)
    assert min(losses) == pytest.approx(bare.held_out_loss(model, rows), rel=1e-6), "the best is what was saved"
    assert held_out[0] == pytest.approx(bare.held_out_loss(bare.plain_model(config), rows), rel=1e-6)
    names = {path.name for path in (Path(config.output) / "checkpoints").iterdir()}
    assert names == {f"checkpoint-{best}", f"checkpoint-{outcome.step}"}
    assert len(series(config, "loss/odd")) == len(series(config, "loss/even")) == outcome.step


def test_the_model_is_asked(ground: Ground, own_output: str) -> None:
    data = {"dataset": [f"{ground.folder / 'chat.jsonl'}#4"], "val_dataset": [f"{ground.folder / 'chat.jsonl'}#4"]}
    options = {"predict_with_generate": True, "num_train_epochs": 40, "learning_rate": 1e-2}
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    config = ground.config(own_output, tuner="full", tuning=NO_OPTIONS, data=data, train=options)
    sft(config)
    exact, rouge = series(config, "eval/exact_match"), series(config, "eval/rouge_l")
    assert exact[0] == rouge[0] == 0.0
    assert exact[-1] == rouge[-1] == 1.0, "it has learnt the four answers by heart"
