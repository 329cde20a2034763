"""Pretraining on texts: predict every token. The same run as `sft`, with other examples.

from hf_bridge.methods.pretrain import pretrain
pretrain(config)        # a TuneConfig, in a process of torchrun or alone
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_bridge.data.row import Row
from hf_bridge.data.rows import Rows
from hf_bridge.methods.config import TuneConfig
from hf_bridge.methods.encode import Example, examples
from hf_bridge.methods.method import Method, Setup
from hf_bridge.methods.sft import example, token_trainer
from hf_bridge.templates.encoding import Encoder
from hf_bridge.templates.truncation import Fitting
from swift_mega.base.errors import UserError

if TYPE_CHECKING:
    from hf_bridge.methods.batches import Sequences
    from hf_bridge.methods.output import Outcome


def pretrain(config: TuneConfig, callbacks: Sequence[Any] = ()) -> "Outcome":
    """Train a model on texts, and say how it ended.

    Args:
        callbacks: your own, transformers' TrainerCallbacks, called after the run's.

    Raises:
        UserError: on every process, for anything the user can mend.
    """
    from hf_bridge.methods.run import run

    return run(config, PRETRAIN, callbacks)


def texts(encoder: Encoder, row: Row, fitting: Fitting) -> list[Example]:
    """What a text becomes."""
    if len(row.messages) != 1 or row.messages[0].role != "assistant":
        raise UserError("the row is no plain text.", "Conversations are for `bridge sft`.")
    return [example(part, row) for part in fitting.fit(encoder.encode(row))]


def sequences(setup: Setup, rows: Rows) -> "Sequences":
    """Texts, packed where that is asked for."""
    from hf_bridge.methods.batches import Sequences

    length = setup.config.length
    return Sequences(examples(setup, rows, texts), rows, length.max_length if length.packing else None)


PRETRAIN = Method(
    name="pretrain",
    task="causal_lm",
    answers=True,
    dataset=sequences,
    trainer=token_trainer,
    template="plain",
    long_rows="split",
    shares_sequences=True,
)
