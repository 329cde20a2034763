"""What a method is: what it makes of rows, and the Trainer it trains with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_bridge.data.rows import Rows
from hf_bridge.models.config import Task
from hf_bridge.templates.encoding import Encoder


@dataclass(frozen=True)
class Setup:
    """What every method is given.

    Attributes:
        config: the run's, a `hf_bridge.methods.config.TuneConfig` or a class below it.
        model: what a Trainer takes, its tuners attached: a PreTrainedModel or a PeftModel.
        tokenizer: of transformers.
        encoder: rows to tokens, labels and weights.
        arguments: transformers' TrainingArguments, filled in by the run; a method makes its own class of them.
        callbacks: progress, metrics, loss.png, those of the tuners.
    """

    config: Any
    model: Any
    tokenizer: Any
    encoder: Encoder
    arguments: dict[str, Any]
    callbacks: list[Any]


@dataclass(frozen=True)
class Method:
    """One way of training.

    Attributes:
        name: as users write it.
        task: the head that the model needs.
        answers: whether rows need an answer; False where the model writes its own (GRPO, PPO).
        dataset: rows → the torch or datasets Dataset that its Trainer takes.
        trainer: the setup, data to train on and data to evaluate on → the Trainer.
    """

    name: str
    task: Task
    answers: bool
    dataset: Callable[[Setup, Rows], Any]
    trainer: Callable[[Setup, Any, Any], Any]
