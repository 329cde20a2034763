"""A chat template as data: what stands around the messages of a conversation.

Each part is text with at most one `{content}`. `{bos}` and `{eos}` stand for the tokenizer's own tokens.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from hf_bridge.data.row import Role

EVERYONE: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Thinking:
    """How a template writes what the assistant thought before its answer.

    Attributes:
        open, close: around the reasoning.
        empty: in its place, where the conversation's last answer has none.
        middle: in its place, where an earlier answer to the last user message (a tool call) has none.
        past: before the last user message, in the place of any reasoning; None: it is kept.
        forgotten: there, where an answer had reasoning; None: as `past`.
    """

    open: str = "<think>\n"
    close: str = "\n</think>\n\n"
    empty: str = ""
    middle: str = ""
    past: str | None = None
    forgotten: str | None = None


@dataclass(frozen=True)
class Template:
    """A declared template.

    Attributes:
        name: what `--template` calls it.
        user: the user's turn.
        assistant: what opens the assistant's turn: the end of a prompt.
        answer: the rest of that turn, from the answer to the token that ends it: what is trained on.
        stop: tokens that end an answer, each one token of the tokenizer; the first is how a misfit is found.
        prefix: opens every conversation.
        system: the system's turn; None: it opens the first user message, as `system_in_user` has it.
        system_in_user: in front of the first user message where `system` is None; None: there is no system.
        default_system: where a row has none.
        separator: between an answer and the next turn.
        suffix: behind the last answer; both are never trained on.
        tool: the turn with the answers of tools, which the agent format writes.
        goes_on: in the place of `answer` where the conversation goes on; None: as `answer`.
        call: in the place of `answer` where the assistant only calls a tool; None: as `answer`.
        after_tool: in the place of `assistant` where a tool has just answered; None: as `assistant`.
        ends_with_next: nothing of its own ends an answer but the token that opens the next turn (GLM).
        strip: roles whose contents lose the blanks around them.
        thinking: how reasoning is written; None: the template has no place for it.
        agent: name of the agent format; None: it has no tools.
    """

    name: str
    user: str
    assistant: str
    answer: str
    stop: tuple[str, ...]
    prefix: str = ""
    system: str | None = None
    system_in_user: str | None = None
    default_system: str | None = None
    separator: str = ""
    suffix: str = ""
    tool: str | None = None
    goes_on: str | None = None
    call: str | None = None
    after_tool: str | None = None
    ends_with_next: bool = False
    strip: tuple[Role, ...] = ()
    thinking: Thinking | None = None
    agent: str | None = None

    def filled(self, bos: str, eos: str) -> "Template":
        """The same with the tokenizer's own tokens for `{bos}` and `{eos}`."""

        def fill(part: str) -> str:
            return part.replace("{bos}", bos).replace("{eos}", eos)

        texts: dict[str, Any] = {
            field.name: fill(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), str) and field.name not in ("name", "default_system")
        }
        return dataclasses.replace(self, **texts, stop=tuple(map(fill, self.stop)))
