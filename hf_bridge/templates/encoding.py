"""Rows as the token ids, labels and loss weights that both training paths take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from hf_bridge.data.row import Message, Row
from hf_bridge.templates.segments import Kind, Segment
from hf_bridge.templates.tokens import Tokens
from swift_mega.base.errors import UserError

IGNORED = -100
"""The label of a token that is not trained on, as torch's cross entropy has it."""

Renderer = Callable[[Row], Sequence[Segment]]
"""What a template makes of a row."""


@dataclass(frozen=True)
class Encoded:
    """One example; all lists have one entry a token.

    Attributes:
        input_ids: the tokens.
        labels: the same, `IGNORED` where nothing is trained; not shifted, as models of transformers want them.
        loss_weights: what each label weighs, 0 where it is ignored.
        kinds: whose text a token is; of a token across an edge, that of the heavier side.
    """

    input_ids: list[int]
    labels: list[int]
    loss_weights: list[float]
    kinds: list[Kind]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> dict[Kind, int]:
        """Tokens of each kind."""
        return {kind: self.kinds.count(kind) for kind in dict.fromkeys(self.kinds)}

    @property
    def trained(self) -> int:
        """Tokens that are trained on."""
        return sum(label != IGNORED for label in self.labels)

    def cut(self, first: int, last: int) -> "Encoded":
        """Tokens `first` to `last`."""
        part = slice(first, last)
        return replace(
            self,
            input_ids=self.input_ids[part],
            labels=self.labels[part],
            loss_weights=self.loss_weights[part],
            kinds=self.kinds[part],
        )


@dataclass(frozen=True)
class EncodedPair:
    """An answer and a worse one to the same prompt.

    Attributes:
        prompt: tokens at the start that both have and neither trains on.
    """

    chosen: Encoded
    rejected: Encoded
    prompt: int


@dataclass(frozen=True)
class Encoder:
    """A template on a tokenizer."""

    tokens: Tokens
    render: Renderer

    def encode(self, row: Row) -> Encoded:
        """The row without its `rejected`.

        Raises:
            UserError: the template has no place for something in it, or nothing in it is trained on; or it has media,
            which would be text alone.
        """
        _check_text_only(row)
        segments = self.render(self.tokens.guarded(row))
        ids, spans = self.tokens.encode(segments)
        weights, kinds = _heaviest(segments, spans, len(ids))
        if not any(weights):
            raise UserError("nothing in the row is trained on.", "It needs an answer of the assistant that has a loss.")
        labels = [token if weight else IGNORED for token, weight in zip(ids, weights, strict=True)]
        return Encoded(ids, labels, weights, kinds)

    def encode_pair(self, row: Row) -> EncodedPair:
        """The row's answer, and `rejected` in its place; only these two are trained on.

        Raises:
            UserError: as `encode`; or the row has no `rejected`, or no answer in whose place it could be.
        """
        if row.rejected is None:
            raise UserError("the row has no `rejected`.", "A pair needs a worse answer.")
        answer = next((n for n, message in enumerate(row.messages[::-1]) if message.role == "user"), None)
        if not answer:
            raise UserError("the row does not end in an answer.", "A pair needs one in whose place `rejected` can be.")
        prompt = tuple(map(_without_loss, row.messages[: len(row.messages) - answer]))
        both = [
            self.encode(msgspec.structs.replace(row, messages=(*prompt, *answers), rejected=None))
            for answers in (row.messages[len(prompt) :], row.rejected)
        ]
        return EncodedPair(both[0], both[1], _shared(*both))


def _heaviest(segments: Sequence[Segment], spans: Sequence[range], count: int) -> tuple[list[float], list[Kind]]:
    """Weight and kind of every token: those of the heaviest segment that it is in."""
    weights, kinds, filled = [0.0] * count, list[Kind](["template"]) * count, 0
    for segment, span in zip(segments, spans, strict=True):
        for number in range(span.start, min(filled, span.stop)):
            if segment.weight > weights[number]:
                weights[number], kinds[number] = segment.weight, segment.kind
        fresh = range(max(filled, span.start), span.stop)
        weights[fresh.start : fresh.stop] = [segment.weight] * len(fresh)
        kinds[fresh.start : fresh.stop] = [segment.kind] * len(fresh)
        filled = max(filled, span.stop)
    return weights, kinds


def _check_text_only(row: Row) -> None:
    for name in ("images", "videos", "audios", "objects"):
        if getattr(row, name):
            raise UserError(
                f"the row has {name}, and no template here makes tokens of them.", f"Take `{name}` out of the data."
            )


def _without_loss(message: Message) -> Message:
    return msgspec.structs.replace(message, loss=False)


def _shared(chosen: Encoded, rejected: Encoded) -> int:
    """Leading tokens that are the same and not trained on."""
    for number, (one, other) in enumerate(zip(chosen.input_ids, rejected.input_ids, strict=False)):
        if one != other or chosen.loss_weights[number] or rejected.loss_weights[number]:
            return number
    return min(len(chosen), len(rejected))


def encoder(
    tokenizer: Any,
    template: str | None = None,
    loss_scale: str = "default",
    agent_format: str | None = None,
    allow_special: bool = False,
    template_arguments: dict[str, Any] | None = None,
) -> Encoder:
    """The encoder of a template on a tokenizer of transformers.

    Args:
        template: name of a declared template; None: the chat template that the tokenizer has.
        loss_scale: see `hf_bridge.templates.loss_scale`.
        agent_format: in the place of the template's own.
        allow_special: special tokens inside messages are taken for what they say.
        template_arguments: for the tokenizer's chat template, such as `enable_thinking`.

    Raises:
        UserError: a name that does not exist, or a template that does not fit the tokenizer.
    """
    from hf_bridge.templates.jinja import JinjaTemplate
    from hf_bridge.templates.loss_scale import LossScale
    from hf_bridge.templates.registry import fitted

    loss = LossScale.parse(loss_scale)
    tokens = Tokens(tokenizer, allow_special)
    if template is None:
        if agent_format is not None:
            raise UserError(
                f"agent format `{agent_format}` is for declared templates.",
                "The model's own chat template has its own format; give `--template` a name for another.",
            )
        own = JinjaTemplate(tokenizer, template_arguments)
        return Encoder(tokens, lambda row: own.segments(row, loss))
    from hf_bridge.templates import declared

    chosen = fitted(template, tokenizer)
    return Encoder(tokens, lambda row: declared.segments(row, chosen, loss, agent_format))
