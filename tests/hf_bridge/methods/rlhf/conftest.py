"""One tiny chat model for all methods, and what a run would give a method."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from hf_bridge.data.config import RowsConfig
from hf_bridge.data.row import Message, Row
from hf_bridge.data.rows import Rows
from hf_bridge.methods.config import LengthConfig
from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.config import MethodName, RlhfConfig
from hf_bridge.methods.rlhf.methods import METHODS
from hf_bridge.models.config import LoadingConfig
from hf_bridge.models.load import load_model
from hf_bridge.templates.encoding import encoder
from tests.support import tiny_chat

ANSWERS = ("I am fine, thank you!", "Yes.", "The weather in Paris is sunny.", "Hello there")
WORSE = ("No.", "There you are, are you there?", "Paris", "fine")


def pairs() -> list[Row]:
    return [
        Row(
            (Message("user", f"How are you? {'Hello ' * n}"), Message("assistant", answer)),
            rejected=(Message("assistant", worse),),
            margin=0.5 * n if n % 2 else None,
            extra={"solution": str(n)},
        )
        for n, (answer, worse) in enumerate(zip(ANSWERS, WORSE, strict=True))
    ]


@dataclass(frozen=True)
class Made:
    """A method's Trainer on four rows, its weights moved a little, and its first batch."""

    setup: Setup
    rows: list[Row]
    examples: Any
    trainer: Any
    batch: dict[str, torch.Tensor]

    def loss(self) -> float:
        inputs = self.trainer._prepare_inputs(dict(self.batch))
        return float(self.trainer.compute_loss(self.setup.model, inputs).detach())


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.save(tmp_path_factory.mktemp("chat") / "model", num_hidden_layers=2)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return tiny_chat.save(tmp_path_factory.mktemp("other") / "model", num_hidden_layers=3)


@pytest.fixture
def make_setup(chat_model: Path, tmp_path: Path) -> Callable[..., Setup]:
    """`make_setup(method, lora=True, arguments={}, **sections)`."""

    def make(method: MethodName, lora: bool = True, arguments: dict[str, Any] | None = None, **sections: Any) -> Setup:
        config = RlhfConfig(
            model=str(chat_model),
            output=str(tmp_path / "out"),
            method=method,
            data=RowsConfig(cache_dir=str(tmp_path / "cache"), workers=1),
            length=LengthConfig(long_rows="drop"),
            **sections,
        )
        declared = METHODS[method]
        loaded = load_model(str(chat_model), LoadingConfig(num_labels=declared.num_labels), declared.task)
        kind = "SEQ_CLS" if declared.task == "seq_cls" else "CAUSAL_LM"
        options = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, task_type=kind)
        model = peft.get_peft_model(loaded.model, options) if lora else loaded.model
        filled: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        words = encoder(loaded.tokenizer, "chatml")
        return Setup(config, loaded.tokenizer, words, model, filled | (arguments or {}))

    return make


@pytest.fixture
def make(make_setup: Callable[..., Setup]) -> Callable[..., Made]:
    """`make(method, …)`: as `make_setup`, and on with the method."""

    def on(method: MethodName, *args: Any, rows: list[Row] | None = None, **more: Any) -> Made:
        setup = make_setup(method, *args, **more)
        given = pairs() if rows is None else rows
        examples = METHODS[method].dataset(replace(setup, model=None), Rows.all_of(given))
        trainer = METHODS[method].trainer(setup, examples, None)
        kept = [trainer.train_dataset[n] for n in range(min(4, len(trainer.train_dataset)))]
        batch = trainer.data_collator(kept)
        return Made(setup, given, examples, trainer, batch)

    return on


def moved(model: Any, seed: int = 1) -> None:
    """Other weights, wherever it is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
