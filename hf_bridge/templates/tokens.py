"""Segments as token ids, where only the template's own text makes special tokens.

The whole text is tokenised at once, so the ids are those of `apply_chat_template`: merges across the edge of two
segments are the model's own. A special token inside a message (`<|im_end|>` in a user's text) would end the turn; it
is set aside as one private character while the template is filled in, and comes back as ordinary text.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from msgspec.structs import replace

from hf_bridge.data.row import Message, Row, ToolCall
from hf_bridge.templates.segments import Segment
from swift_mega.base.errors import UserError

FIRST_PRIVATE = 0x100000
"""Of Unicode's last private plane, whose characters no text has: one for each special token."""

PRIVATE = re.compile("([\U00100000-\U0010fffd])")


class Tokenised(NamedTuple):
    """Token ids, and which of them each segment is made of; one across an edge belongs to both sides."""

    ids: list[int]
    spans: list[range]


class Tokens:
    """A tokenizer, and what it takes for special."""

    def __init__(self, tokenizer: Any, allow_special: bool = False) -> None:
        """Wrap a tokenizer of transformers.

        Args:
            allow_special: special tokens inside messages are taken for what they say.

        Raises:
            UserError: the tokenizer cannot say which characters a token is made of.
        """
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} does not say where in the text its tokens are.",
                "Load it with `use_fast=True`, or save it as a `tokenizer.json`.",
            )
        self.tokenizer = tokenizer
        self.special = sorted({str(token) for token in tokenizer.added_tokens_decoder.values() if token.special})
        self._numbers = {token: number for number, token in enumerate(self.special)}
        self._found = re.compile("|".join(re.escape(token) for token in sorted(self.special, key=len, reverse=True)))
        self._guards = bool(self.special) and not allow_special

    def guarded(self, row: Row) -> Row:
        """The row with special tokens in its messages and tools set aside (see above).

        Raises:
            UserError: a message holds a character that is needed for that.
        """
        rejected = tuple(map(self._message, row.rejected)) if row.rejected is not None else None
        tools = tuple(_deep(self._text, tool) for tool in row.tools) if self._guards else row.tools
        return replace(row, messages=tuple(map(self._message, row.messages)), rejected=rejected, tools=tools)

    def restored(self, text: str) -> str:
        """`text` with special tokens where they were."""
        return PRIVATE.sub(lambda match: self.special[ord(match[1]) - FIRST_PRIVATE], text)

    def encode(self, segments: Sequence[Segment]) -> Tokenised:
        """The tokens of the segments' joined text."""
        text = "".join(segment.text for segment in segments)
        ids: list[int] = []
        firsts: list[int] = []  # of each token, its first character and the one behind its last
        lasts: list[int] = []
        start = 0
        for number, piece in enumerate(PRIVATE.split(text)):
            found, offsets = self._ids(piece, aside=number % 2 == 1)
            ids += found
            firsts += [start + first for first, _ in offsets]
            lasts += [start + (last if last > first else first + 1) for first, last in offsets]
            start += len(piece)
        edges = [0, *accumulate(len(segment.text) for segment in segments)]
        return Tokenised(ids, [range(bisect_right(lasts, a), bisect_left(firsts, b)) for a, b in pairwise(edges)])

    def _ids(self, piece: str, aside: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the first character of every token of a piece and the one behind its last."""
        if not piece:
            return [], []
        if aside:
            found = self._quiet(self.restored(piece), split_special_tokens=True)
            return found["input_ids"], [(0, 1)] * len(found["input_ids"])
        found = self._quiet(piece, return_offsets_mapping=True)
        return found["input_ids"], found["offset_mapping"]

    def _quiet(self, text: str, **options: bool) -> Any:
        """Without the warning of transformers about a long text: what becomes of it is ours to say (`Fitting`)."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False, **options)

    def _text(self, text: str) -> str:
        if private := PRIVATE.search(text):
            raise UserError(
                f"a message holds the private character U+{ord(private[1]):X}, which stands for special tokens here.",
                "Take it out of the data.",
            )
        return self._found.sub(lambda match: chr(FIRST_PRIVATE + self._numbers[match[0]]), text)

    def _message(self, message: Message) -> Message:
        if not self._guards:
            return message
        return replace(
            message,
            content=self._text(message.content),
            reasoning=None if message.reasoning is None else self._text(message.reasoning),
            tool_calls=tuple(
                ToolCall(self._text(call.name), _deep(self._text, call.arguments)) for call in message.tool_calls
            ),
        )


def _deep(change: Callable[[str], str], value: Any) -> Any:
    """`value` with `change` done to every text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _deep(change, item) for key, item in value.items()}
    return [_deep(change, item) for item in value] if isinstance(value, list) else value
