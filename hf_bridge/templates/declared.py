"""A row through a declared template: its segments, with their weights."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from hf_bridge.data.row import Message, Role, Row
from hf_bridge.templates.agents.format import AgentFormat
from hf_bridge.templates.agents.registry import agent_format
from hf_bridge.templates.loss_scale import LossScale
from hf_bridge.templates.segments import Kind, Segment
from hf_bridge.templates.template import Template, Thinking
from swift_mega.base.errors import UserError

THOUGHT = re.compile(r"\A\s*<think>(?P<reasoning>.*?)</think>\s*", re.DOTALL)
"""Reasoning that a row has in the content itself."""

OPENING = re.compile(r"\A<[^<>\s]+>")
"""The token that opens a turn."""


class Turn(NamedTuple):
    """A message, or the answers of several tools that belong together."""

    messages: tuple[Message, ...]
    weight: float
    number: int
    """Of the first message in the row."""

    @property
    def role(self) -> str:
        return self.messages[0].role

    @property
    def text(self) -> str:
        return self.messages[0].content


def segments(row: Row, template: Template, loss: LossScale, agent: str | None = None) -> list[Segment]:
    """The segments of `row`; `template` is filled with the tokenizer's own tokens.

    Args:
        agent: name of an agent format in the place of the template's own.

    Raises:
        UserError: the row has what the template has no place for.
    """
    return list(_Rendering(row, template, loss, agent).segments())


def turns(messages: Sequence[Message], loss: LossScale) -> list[Turn]:
    """Messages one by one, answers of tools together."""
    found: list[Turn] = []
    for number, (message, weight) in enumerate(zip(messages, loss.of_messages(messages), strict=True)):
        if message.role == "tool" and found and found[-1].role == "tool" and found[-1].weight == weight:
            found[-1] = found[-1]._replace(messages=(*found[-1].messages, message))
        else:
            found.append(Turn((message,), weight, number))
    return found


class _Rendering:
    """One row on its way through one template."""

    def __init__(self, row: Row, template: Template, loss: LossScale, agent: str | None) -> None:
        self.template, self.loss = template, loss
        self.turns = turns(row.messages, loss)
        self.last_user = max((turn.number for turn in self.turns if turn.role == "user"), default=-1)
        self.format = self._agent(row, agent)
        self.preamble = self.format.tools_text(row.tools) if self.format and row.tools else ""
        given = self.turns.pop(0) if self.turns and self.turns[0].role == "system" else None
        self.system = given.text if given else template.default_system
        self.system_weight = given.weight if given else loss.of_template

    def segments(self) -> list[Segment]:
        """All of them, in order."""
        made = [self._own(self.template.prefix), *self._opening()]
        first = True
        for before, turn, following in zip([None, *self.turns], self.turns, [*self.turns[1:], None], strict=False):
            if turn.role == "assistant":
                made += self._assistant(before, turn, following)
            else:
                made += self._turn(turn, first and turn.role == "user")
                first = first and turn.role != "user"
        if first:
            self._check_nothing_waits()
        return [segment for segment in self._closed_by_next(made) if segment.text]

    def _own(self, text: str) -> Segment:
        return Segment(text, "template", self.loss.of_template)

    def _around(self, part: str, content: str, kind: Kind, weight: float) -> list[Segment]:
        """`part` of the template around `content`."""
        before, _, after = part.partition("{content}")
        return [self._own(before), Segment(content, kind, weight), self._own(after)]

    def _opening(self) -> list[Segment]:
        """What the system says and which tools there are, where they stand before the first turn."""
        place = self.format.place if self.format and self.preamble else None
        start = [self._own(self.preamble)] if place == "start" else []
        if place == "system":
            self.system = "\n\n".join(filter(None, (self.system, self.preamble)))
        if self.template.system is None or self.system is None:
            if self.system and self.template.system_in_user is None:
                raise UserError(
                    f"the template {self.template.name} has no place for a system message.",
                    "Put its text into the first user message, or choose another template.",
                )
            return start
        return start + self._around(
            self.template.system, self._stripped(self.system, "system"), "system", self.system_weight
        )

    def _turn(self, turn: Turn, first: bool) -> list[Segment]:
        """A turn that the model does not write. The first user's may carry the system and the tools."""
        part, content = self._part(turn)
        made: list[Segment] = []
        if first and self.format and self.preamble and self.format.place in ("user", "turn"):
            if self.format.place == "turn":
                made.append(self._own(self.preamble))
            else:
                content = self.preamble + content
        before, _, after = part.partition("{content}")
        made.append(self._own(before))
        if first and self.system and self.template.system is None and self.template.system_in_user:
            made += self._around(self.template.system_in_user, self.system, "system", self.system_weight)
        kind: Kind = turn.messages[0].role
        return [*made, Segment(content, kind, turn.weight), self._own(after)]

    def _check_nothing_waits(self) -> None:
        """Without a user's message, what goes into the first one would be lost."""
        in_user = self.system and self.template.system is None
        if in_user or (self.format and self.preamble and self.format.place in ("user", "turn")):
            raise UserError(
                f"{self.template.name} puts the {'system message' if in_user else 'tools'} into the first message of "
                "the user, and there is none.",
                "Add one, or choose another template.",
            )

    def _part(self, turn: Turn) -> tuple[str, str]:
        """The template's part for a turn, and what goes into it."""
        if turn.role == "user":
            return self.template.user, self._stripped(turn.text, "user")
        if turn.role == "system":
            if self.template.system is None:
                raise UserError(
                    f"message {turn.number} is the system's, and {self.template.name} has it at the start only.",
                    "Move it there, or choose another template.",
                )
            return self.template.system, self._stripped(turn.text, "system")
        if self.template.tool is None or self.format is None:
            raise self._no_tools(f"message {turn.number} is a tool's answer")
        return self.template.tool, self.format.responses_text([message.content for message in turn.messages])

    def _assistant(self, before: Turn | None, turn: Turn, following: Turn | None) -> list[Segment]:
        opening = self.template.assistant
        if before is not None and before.role == "tool" and self.template.after_tool is not None:
            opening = self.template.after_tool
        text, end = self._answer(turn, last=following is None)
        query = next((t.text for t in reversed(self.turns) if t.role == "user" and t.number < turn.number), "")
        scale = self.loss.spans(text, query, turn.messages[0])
        made = [self._own(opening)]
        made += [Segment(piece, "assistant", weight * turn.weight) for piece, weight in scale]
        made.append(Segment(end + self._next_token(turn, following), "assistant", turn.weight))
        return [*made, self._own(self.template.separator if following else self.template.suffix)]

    def _next_token(self, turn: Turn, following: Turn | None) -> str:
        """Where the next turn's token ends an answer: behind the last one, the token that would come."""
        if not self.template.ends_with_next or following is not None:
            return ""
        part = self.template.tool if turn.messages[0].tool_calls and self.template.tool else self.template.user
        match = OPENING.match(part)
        return match[0] if match else ""

    def _closed_by_next(self, made: list[Segment]) -> list[Segment]:
        """Where the next turn's token ends an answer: it weighs as that answer does."""
        if not self.template.ends_with_next:
            return made
        closed: list[Segment] = []
        for segment in filter(lambda segment: segment.text, made):
            match = OPENING.match(segment.text) if closed and closed[-1].kind == "assistant" else None
            if match and segment.kind == "template":
                closed.append(Segment(match[0], "assistant", closed[-1].weight))
                segment = segment._replace(text=segment.text[match.end() :])
            closed.append(segment)
        return closed

    def _answer(self, turn: Turn, last: bool) -> tuple[str, str]:
        """What the assistant writes, and what ends it."""
        message = turn.messages[0]
        reasoning, content = self._thought(message)
        thought = self._thinking(turn, reasoning, last)
        content = self._stripped(content, "assistant")
        part = self.template.answer if last or self.template.goes_on is None else self.template.goes_on
        if message.tool_calls:
            if self.format is None:
                raise self._no_tools(f"message {turn.number} calls a tool")
            if not content and self.template.call is not None:
                part = self.template.call
            content += (self.format.between_content if content else "") + self.format.calls(message.tool_calls)
        head, _, end = part.partition("{content}")
        return thought + head + content, end

    def _thought(self, message: Message) -> tuple[str | None, str]:
        """Reasoning and content, where the row has both in the content."""
        match = THOUGHT.match(message.content) if self.template.thinking and message.reasoning is None else None
        if match is None:
            return message.reasoning, message.content
        return match["reasoning"].strip("\n"), message.content[match.end() :]

    def _thinking(self, turn: Turn, reasoning: str | None, last: bool) -> str:
        convention = self.template.thinking
        if convention is None:
            if reasoning:
                raise UserError(
                    f"message {turn.number} has reasoning, and the template {self.template.name} has no place for it.",
                    "Choose a template that thinks, or put the reasoning into the content.",
                )
            return ""
        if turn.number < self.last_user and convention.past is not None:
            self._check_forgotten(turn, reasoning)
            return convention.forgotten if reasoning and convention.forgotten is not None else convention.past
        return written(convention, reasoning, last)

    def _check_forgotten(self, turn: Turn, reasoning: str | None) -> None:
        if reasoning and turn.weight:
            raise UserError(
                f"message {turn.number} would be trained on without its reasoning, as {self.template.name} shows none "
                "before the last user message.",
                "Train on the last round only (loss scale `last_round`), or make a row of each round "
                "(hf_bridge.templates.rounds).",
            )

    def _stripped(self, text: str, role: Role) -> str:
        return text.strip() if role in self.template.strip else text

    def _agent(self, row: Row, agent: str | None) -> AgentFormat | None:
        name = agent or self.template.agent
        if name is None and row.tools:
            raise self._no_tools("the row has tools")
        return agent_format(name) if name else None

    def _no_tools(self, what: str) -> UserError:
        return UserError(
            f"{what}, and the template {self.template.name} has no place for it.",
            "Choose an agent format (`hermes` or `react` go with most templates), or another template.",
        )


def written(convention: Thinking, reasoning: str | None, last: bool) -> str:
    """The reasoning of an answer to the last user message, or what stands in its place."""
    if reasoning:
        return convention.open + reasoning.strip("\n") + convention.close
    return convention.empty if last else convention.middle
