"""Rows as what methods on preferences and rewards are trained on: tokens of our own templates, kept on disk."""

from collections.abc import Sequence

import msgspec
import numpy as np

from hf_bridge.data.row import Message, Row
from hf_bridge.methods.rewards.reward import question
from hf_bridge.templates.encoding import Encoded, Encoder
from hf_bridge.templates.truncation import Fitting
from swift_mega.base.errors import UserError


class Tokens(msgspec.Struct, frozen=True, array_like=True):
    """A conversation.

    Attributes:
        ids: tokens, int32.
        answer: whether each belongs to the answer, bool; tools' answers in between do not.
    """

    ids: bytes
    answer: bytes

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.answer)

    @property
    def trained(self) -> int:
        """How many of the answer are predicted; the first token of all cannot be."""
        return int(np.count_nonzero(self.mask[1:]))

    @property
    def input_ids(self) -> np.ndarray:
        """[S] int64."""
        return np.frombuffer(self.ids, np.int32).astype(np.int64)

    @property
    def mask(self) -> np.ndarray:
        """[S] bool, of the answer."""
        return np.frombuffer(self.answer, np.bool_)

    @property
    def prompt(self) -> int:
        """Tokens before the last stretch of the answer."""
        starts = np.flatnonzero(np.diff(self.mask.astype(np.int8), prepend=0) == 1)
        return int(starts[-1]) if len(starts) else self.tokens


class Pair(msgspec.Struct, frozen=True, array_like=True):
    """An answer and a worse one; `margin` is by how much, 0 where nothing is said."""

    chosen: Tokens
    rejected: Tokens
    margin: float

    @property
    def tokens(self) -> int:
        """Of both."""
        return self.chosen.tokens + self.rejected.tokens

    @property
    def trained(self) -> int:
        """Of both; none where one of them has none."""
        each = self.chosen.trained, self.rejected.trained
        return sum(each) if all(each) else 0


class Judged(msgspec.Struct, frozen=True, array_like=True):
    """An answer that is wanted, or not."""

    text: Tokens
    label: bool

    @property
    def tokens(self) -> int:
        """How many it has."""
        return self.text.tokens

    @property
    def trained(self) -> int:
        """How many of them are predicted."""
        return self.text.trained


class Prompt(msgspec.Struct, frozen=True, array_like=True):
    """A question that the model answers, up to where its answer begins; and its row, for the rewards."""

    ids: bytes
    row: Row

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.ids) // 4

    @property
    def trained(self) -> int:
        """None is, but the question is used."""
        return 1

    @property
    def input_ids(self) -> list[int]:
        """The tokens."""
        found: list[int] = np.frombuffer(self.ids, np.int32).tolist()
        return found


def tokens(encoded: Encoded) -> Tokens:
    """As it is kept.

    Raises:
        UserError: a token of the answer weighs neither 0 nor 1.
    """
    weights = np.asarray(encoded.loss_weights, np.float32)
    if other := sorted({*weights.tolist()} - {0.0, 1.0}):
        raise UserError(
            f"a token weighs {other[-1]:g} in the loss; this method takes answers as a whole, with weights 0 and 1.",
            "Choose another `loss_scale`, and leave `loss_scale` out of the messages.",
        )
    return Tokens(np.asarray(encoded.input_ids, np.int32).tobytes(), (weights > 0).tobytes())


def pairs(encoder: Encoder, row: Row, fitting: Fitting) -> Sequence[Pair]:
    """A preference as a pair."""
    pair = fitting.fit_pair(encoder.encode_pair(row))
    return [] if pair is None else [Pair(tokens(pair.chosen), tokens(pair.rejected), row.margin or 0.0)]


def judged(encoder: Encoder, row: Row, fitting: Fitting) -> Sequence[Judged]:
    """A labelled answer, or the two of a preference, the chosen one wanted and the rejected one not."""
    if row.rejected is None:
        if row.label not in (True, False):
            raise UserError(
                "it has no `label`." if row.label is None else f"its `label` is {row.label!r}.",
                "KTO needs a column `label` with true or false (another name: `--columns`), or one `rejected`.",
            )
        answers = [(last_answer(encoder, row), bool(row.label))]
    else:
        pair = encoder.encode_pair(row)
        answers = [(pair.chosen, True), (pair.rejected, False)]
    return [Judged(tokens(part), label) for answer, label in answers for part in fitting.fit(answer)]


def taught(encoder: Encoder, row: Row, fitting: Fitting) -> Sequence[Tokens]:
    """A conversation, all its answers."""
    return [tokens(part) for part in fitting.fit(encoder.encode(row))]


def prompts(encoder: Encoder, row: Row, fitting: Fitting) -> Sequence[Prompt]:
    """A question; one that is too long is left out, as what is asked stands at its end."""
    ids = prompt_ids(encoder, row)
    fits = len(ids) <= fitting.max_length
    fitting.counts["fits" if fits else "dropped"] += 1
    return [Prompt(np.asarray(ids, np.int32).tobytes(), row)] if fits else []


def last_answer(encoder: Encoder, row: Row) -> Encoded:
    """The row, of which only what follows the last message of the user is trained on."""
    asked = len(question(row).messages)
    last = max((n for n, message in enumerate(row.messages[:asked]) if message.role == "user"), default=asked - 1)
    return encoder.encode_pair(msgspec.structs.replace(row, rejected=row.messages[last + 1 :])).chosen


def prompt_ids(encoder: Encoder, row: Row) -> list[int]:
    """The row without its own answer, up to where the model's answer begins."""
    asked = question(row).messages
    if not asked:
        raise UserError("the row has no question.", "It needs a message of the user.")
    silent = tuple(msgspec.structs.replace(message, loss=False) for message in asked)
    encoded = encoder.encode(msgspec.structs.replace(row, messages=(*silent, Message("assistant", "x")), rejected=None))
    return encoded.input_ids[: next(n for n, weight in enumerate(encoded.loss_weights) if weight)]


def end_tokens(encoder: Encoder, tokenizer: "object") -> list[int]:
    """Tokens that end an answer: the tokenizer's, and the special one with which the template closes it."""
    encoded = encoder.encode(Row((Message("user", "x"), Message("assistant", "x"))))
    last = next(label for label in reversed(encoded.labels) if label >= 0)
    known = set(getattr(tokenizer, "all_special_ids", []))
    ends = {getattr(tokenizer, "eos_token_id", None), last if last in known else None} - {None}
    return sorted(end for end in ends if end is not None)
