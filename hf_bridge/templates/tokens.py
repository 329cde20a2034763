"""Segments as token ids, where only the template's own text makes special tokens.

The whole text is tokenised at once, so the ids are those of `apply_chat_template`: merges across the edge of two
segments are the model's own. A special token inside a message (`<|im_end|>` in a user's text) would end the turn; it
is set aside as one private character while the template is filled in, and comes back as ordinary text.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from msgspec.structs import replace

from hf_bridge.data.row import Message, Row, ToolCall
from hf_bridge.templates.segments import Segment
from swift_mega.base.errors import UserError

FIRST_PRIVATE = 0x100000
"""Of Unicode's last private plane, whose characters no text has: one for each special token."""

PRIVATE = re.compile("([\U00100000-\U0010fffd])")


class Token(NamedTuple):
    """One token and the segments it is made of."""

    id: int
    segments: range


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

    def encode(self, segments: Sequence[Segment]) -> list[Token]:
        """The tokens of the segments' joined text. A token across an edge belongs to both sides."""
        text = "".join(segment.text for segment in segments)
        ends = list(accumulate(len(segment.text) for segment in segments))
        tokens, start = [], 0
        for number, piece in enumerate(PRIVATE.split(text)):
            for token_id, first, last in self._ids(piece, aside=number % 2 == 1):
                low = bisect_right(ends, min(start + first, len(text) - 1))
                high = bisect_right(ends, min(max(start + last - 1, start + first), len(text) - 1))
                tokens.append(Token(token_id, range(low, high + 1)))
            start += len(piece)
        return tokens

    def _ids(self, piece: str, aside: bool) -> list[tuple[int, int, int]]:
        """Id, first and last character of every token of a piece."""
        if not piece:
            return []
        if aside:
            plain = self.tokenizer(self.restored(piece), add_special_tokens=False, split_special_tokens=True)
            return [(token_id, 0, 1) for token_id in plain["input_ids"]]
        found = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        return [(token_id, *span) for token_id, span in zip(found["input_ids"], found["offset_mapping"], strict=True)]

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
