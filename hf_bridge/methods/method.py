"""What a method is: what it makes of rows, and the Trainer it trains with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hf_bridge.data.rows import Rows
from hf_bridge.methods.config import LongRows
from hf_bridge.models.config import Task
from hf_bridge.templates.encoding import Encoder


@dataclass(frozen=True)
class Setup:
    """What every method is given.

    Attributes:
        config: the run's, a `hf_bridge.methods.config.TuneConfig` or a class below it.
        tokenizer: of transformers.
        encoder: rows to tokens, labels and weights.
        model: what a Trainer takes, its tuners attached: a PreTrainedModel or a PeftModel. None while data is made,
            which a dry run does without weights.
        arguments: transformers' TrainingArguments, filled in by the run; a method makes its own class of them.
        callbacks: progress, metrics, loss.png, those of the tuners.
        optimizer: what the tuners ask for; None: the Trainer's own.
    """

    config: Any
    tokenizer: Any
    encoder: Encoder
    model: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[Any, ...] = ()
    optimizer: Any = None


@dataclass(frozen=True)
class Method:
    """One way of training.

    Attributes:
        name: as users write it.
        task: the head that the model needs.
        answers: whether rows need an answer; False where the model writes its own (GRPO, PPO).
        dataset: rows → the torch or datasets Dataset that its Trainer takes; its `tokens`, where it has the attribute,
            is what an epoch has of them. The setup has no model yet. Called on every process.
        trainer: the setup, data to train on and data to evaluate on → the Trainer. A Trainer that logs `num_tokens`,
            tokens seen since the first step by all processes, gets its speed reported.
        template: declared one, where the run names none, in the place of the model's own.
        long_rows: where the run does not say.
        shares_sequences: whether its loss is a sum over tokens, which processes can share.
        num_labels: of the head, where the run does not say.
        check: the configuration and the rows to train on → nothing, or a UserError before anything is made of them.
        visits: configuration → how many places of a batch a row has in an epoch, where that is not one.
    """

    name: str
    task: Task
    answers: bool
    dataset: Callable[[Setup, Rows], Any]
    trainer: Callable[[Setup, Any, Any], Any]
    template: str | None = None
    long_rows: LongRows = "drop"
    shares_sequences: bool = False
    num_labels: int | None = None
    visits: Callable[[Any], int] = lambda config: 1
    check: Callable[[Any, Rows], None] = lambda config, rows: None
