"""Supervised fine-tuning: predict the answers of conversations, each token with its weight.

from hf_bridge.methods.sft import sft
sft(config)        # a TuneConfig, in a process of torchrun or alone
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_bridge.data.row import Row
from hf_bridge.data.rows import Rows
from hf_bridge.methods.config import TuneConfig
from hf_bridge.methods.encode import Example, examples
from hf_bridge.methods.method import Method, Setup
from hf_bridge.templates.encoding import Encoded, Encoder
from hf_bridge.templates.truncation import Fitting

if TYPE_CHECKING:
    from hf_bridge.methods.batches import Sequences
    from hf_bridge.methods.output import Outcome


def sft(config: TuneConfig, callbacks: Sequence[Any] = ()) -> "Outcome":
    """Tune a model on conversations, and say how it ended.

    Args:
        callbacks: your own, transformers' TrainerCallbacks, called after the run's.

    Raises:
        UserError: on every process, for anything the user can mend.
    """
    from hf_bridge.methods.run import run

    return run(config, SFT, callbacks)


def example(encoded: Encoded, row: Row) -> Example:
    """As it is kept."""
    ids = np.asarray(encoded.input_ids, np.int32).tobytes()
    return Example(ids, np.asarray(encoded.loss_weights, np.float32).tobytes(), row.channel)


def answers(encoder: Encoder, row: Row, fitting: Fitting) -> list[Example]:
    """What a conversation becomes."""
    return [example(part, row) for part in fitting.fit(encoder.encode(row))]


def sequences(setup: Setup, rows: Rows) -> "Sequences":
    """Conversations, packed where that is asked for."""
    from hf_bridge.methods.batches import Sequences

    length = setup.config.length
    return Sequences(examples(setup, rows, answers), rows, length.max_length if length.packing else None)


def token_trainer(setup: Setup, train: Any, valid: Any) -> Any:
    """The Trainer of both methods that predict tokens."""
    from hf_bridge.methods.apart import check_packing
    from hf_bridge.methods.generate import check_generation
    from hf_bridge.methods.token_trainer import TokenTrainer

    if setup.config.train.predict_with_generate and valid is not None:
        check_generation(valid.rows)
    trainer = TokenTrainer(setup, train, valid)
    if setup.config.length.packing:
        check_packing(trainer.model, trainer.inputs)
    return trainer


SFT = Method(
    name="sft", task="causal_lm", answers=True, dataset=sequences, trainer=token_trainer, shares_sequences=True
)
