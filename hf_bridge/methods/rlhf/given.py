"""What the Trainers here share: they take examples as they are, tokenised, and stay on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets

from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.options import arguments
from hf_bridge.methods.rlhf.reference import TUNERS_OFF
from hf_bridge.methods.token_trainer import Quiet
from swift_mega.base.errors import UserError


class _Row(datasets.Dataset):  # type: ignore[misc]
    """All that TRL sees while a Trainer is made, when it looks at the data and would prepare it: an empty row."""

    def map(self, *args: Any, **kwargs: Any) -> "_Row":
        return self


class Given(Quiet):
    """In front of a Trainer of TRL: no templates, no tokenising, no telemetry, no model card of theirs.

    Args:
        train: examples, of any kind that `data_collator` understands; `valid` also, or None.
        more: what the Trainer takes besides.
    """

    def __init__(self, setup: Setup, train: Any, valid: Any, **more: Any) -> None:
        row = _Row.from_dict({"prompt": [""], "completion": [""], "label": [True]})
        self._reference_model: Any = None
        with _explained():
            super().__init__(
                model=setup.model,
                train_dataset=row,
                eval_dataset=None if valid is None else row,
                processing_class=setup.tokenizer,
                callbacks=list(setup.callbacks),
                optimizers=(setup.optimizer, None),
                **more,
            )
        self.train_dataset, self.eval_dataset = train, valid

    @property
    def ref_model(self) -> Any:
        """None: the policy with its tuners switched off, as TRL's Trainers take it for models of PEFT."""
        return self._reference_model

    @ref_model.setter
    def ref_model(self, model: Any) -> None:
        # With None for an argument TRL would make a copy of the tuner, and save it with every checkpoint.
        self._reference_model = None if model is TUNERS_OFF else model

    def _prepare_dataset(self, dataset: Any, *more: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the run says itself what it was."""


def trl_arguments(setup: Setup, kind: type, **more: Any) -> Any:
    """The arguments of a Trainer of TRL.

    Args:
        kind: its config class.
        more: that overrides what the user has said.
    """
    own = {**setup.arguments, **arguments(setup.config), **more}
    with _explained():
        return kind(**{"bf16": False, **own, "remove_unused_columns": False})


@contextmanager
def _explained() -> Iterator[None]:
    """What TRL refuses is the user's to mend, and it says how."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"TRL refuses: {error}", "Change the options that it names.") from error


def check_enough(questions: int, needed: int) -> None:
    """Refuse a step that asks more questions than there are, of which TRL's sampler would make no step at all.

    A rest that is smaller is left out of an epoch, and is another one in the next.

    Raises:
        UserError: there are too few.
    """
    if questions < needed:
        raise UserError(
            f"answers are drawn to {needed} questions at once, and there are {questions}.",
            "Lower per_device_train_batch_size or gradient_accumulation_steps, or give more questions.",
        )


def pad_of(tokenizer: Any) -> int:
    """The token to pad with, which nothing looks at."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
