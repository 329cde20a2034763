"""The model's own chat template, for training too: which of its text the assistant wrote.

Where the template marks that itself (`{% generation %}`), the marks hold. Otherwise the conversation is rendered once
more up to every answer that is trained on: the prompt before it must open the whole text, and so must the conversation
that ends with it, up to its last special token, from which the model learns to end an answer. An answer that opens the
row has no prompt: it begins behind what the template asks for one with, which must be there once. A template that
writes former turns anew (Qwen3 drops their reasoning) fails that, and the row is refused: what the model would be
trained on is not what it sees when it answers.
"""

import re
from collections.abc import Sequence
from typing import Any

from hf_bridge.data.row import Message, Row
from hf_bridge.templates.loss_scale import LossScale
from hf_bridge.templates.segments import Segment
from swift_mega.base.errors import UserError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

WAYS = (
    "Train on the last round only (loss scale `last_round`), make a row of each round (hf_bridge.templates.rounds), "
    "or name a declared template."
)

Span = tuple[int, int]
"""First character and the one behind the last."""


class JinjaTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, arguments: dict[str, Any] | None = None) -> None:
        """Take it from the tokenizer.

        Args:
            arguments: what else the template can be told, such as `enable_thinking`.

        Raises:
            UserError: it has none.
        """
        if not tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template.", "Name a declared one: `--template chatml`, or `plain` for text."
            )
        self.tokenizer = tokenizer
        self._ends = tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self.arguments = {**tokenizer.special_tokens_map, **(arguments or {})}

    def segments(self, row: Row, loss: LossScale) -> list[Segment]:
        """The segments of `row`, its answers weighed by `loss`.

        Raises:
            UserError: the template refuses the row, or its answers cannot be told from the rest.
        """
        weights = loss.of_messages(row.messages)
        text, marks = self._render(row, len(row.messages))
        trained = [number for number, weight in enumerate(weights) if weight]
        _check_kept(row, text, trained)
        if loss.choice == "all":
            return [Segment(text, "template", 1.0)]
        _check_only_answers(row, trained)
        spans = self._marked(row, marks, trained) if self._marks else self._aligned(row, text, trained)
        made, position = [], 0
        for number, (first, last) in zip(trained, spans, strict=True):
            made.append(Segment(text[position:first]))
            message = row.messages[number]
            pieces = loss.spans(text[first:last], _query(row.messages, number), message)
            made += [Segment(piece, "assistant", weight * weights[number]) for piece, weight in pieces]
            position = last
        return [*made, Segment(text[position:])]

    @property
    def _marks(self) -> bool:
        return bool(GENERATION.search(self._template))

    @property
    def _template(self) -> str:
        template = self.tokenizer.chat_template
        return str(template.get("default", "") if isinstance(template, dict) else template)

    def _marked(self, row: Row, marks: Sequence[Span], trained: Sequence[int]) -> list[Span]:
        """Spans by the template's own marks, one an answer."""
        answers = [n for n, message in enumerate(row.messages) if message.role == "assistant"]
        if len(marks) != len(answers):
            raise UserError(
                f"the chat template marks {len(marks)} answers, and the row has {len(answers)}.",
                "Name a declared template, or take `{% generation %}` out of this one.",
            )
        of_answer = dict(zip(answers, marks, strict=True))
        return [of_answer[number] for number in trained]

    def _aligned(self, row: Row, text: str, trained: Sequence[int]) -> list[Span]:
        """Spans by rendering the conversation up to every answer."""
        return [self._span(row, text, number) for number in trained]

    def _span(self, row: Row, text: str, number: int) -> Span:
        ended = self._render(row, number + 1)[0]
        prompt = self._render(row, number, add_generation_prompt=True)[0] if number else self._before_all(row, ended)
        if not text.startswith(prompt):
            raise UserError(
                f"the chat template writes what is before message {number} anew, or opens its answer otherwise than it "
                f"asks for one: …{_around(text, prompt)!r} became …{_around(prompt, text)!r}.",
                WAYS,
            )
        end = next((end for end in self._possible_ends(ended) if text[:end] == ended[:end] and end > len(prompt)), None)
        if end is None:
            raise UserError(
                f"the chat template writes message {number} anew once there are more messages, or ends it with no "
                f"special token: …{_around(ended, text)!r} became …{_around(text, ended)!r}.",
                WAYS,
            )
        return len(prompt), end

    def _before_all(self, row: Row, ended: str) -> str:
        """What is before an answer that opens the row: of `ended`, which is that answer alone, up to where it begins.

        Without messages there is no prompt to compare with, and a template that is asked for one may leave out what it
        puts before a conversation (SmolLM2's system message).
        """
        asking = self._render(row, 1, add_generation_prompt=True)[0]
        opening = next((asking[end:] for end in self._possible_ends(ended) if asking[:end] == ended[:end]), "").lstrip()
        if (count := ended.count(opening) if opening else 0) != 1:
            raise UserError(
                "the row begins with an answer, and where that begins cannot be told in what the chat template makes "
                f"of it: {opening!r}, which asks for an answer, is there {count} times.",
                "Put a message before it, leave it out of the loss (`loss: false`), or name a declared template.",
            )
        return ended[: ended.index(opening) + len(opening)]

    def _possible_ends(self, ended: str) -> list[int]:
        """Where an answer may end in a text that ends with it: behind its last special token.

        Templates may end the whole text with one more (Phi-3), which is not there once the conversation goes on.
        """
        bare = ended.rstrip()
        without = bare.removesuffix(str(self.tokenizer.eos_token or "")).rstrip()
        return [len(one) for one in (without, bare) if one.endswith(self._ends)]

    def _render(self, row: Row, count: int, add_generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """The first `count` messages as text, and what the template marks in it."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        if not count:
            return "", []
        try:
            texts, marks = render_jinja_template(
                [[_as_openai(message) for message in row.messages[:count]]],
                tools=[_as_tool(tool) for tool in row.tools] or None,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=self._marks,
                **self.arguments,
            )
        except TemplateError as error:
            raise UserError(
                f"the chat template refuses the row: {error}", "Correct it, or name a declared template."
            ) from None
        return texts[0], [(first, last) for first, last in marks[0]] if self._marks else []


def _as_openai(message: Message) -> dict[str, Any]:
    """A message as chat templates want it."""
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        made["reasoning_content"] = message.reasoning
    if message.tool_calls:
        made["tool_calls"] = [
            {"type": "function", "id": f"{number:09d}", "function": {"name": call.name, "arguments": call.arguments}}
            for number, call in enumerate(message.tool_calls)
        ]
    return made


def _as_tool(tool: dict[str, Any]) -> dict[str, Any]:
    return tool if "function" in tool else {"type": "function", "function": tool}


def _check_only_answers(row: Row, trained: Sequence[int]) -> None:
    for number in trained:
        if row.messages[number].role != "assistant":
            raise UserError(
                f"message {number} ({row.messages[number].role}) has a loss, and of the model's own chat template only "
                "answers can be told from the rest.",
                "Name a declared template, or take `loss` from the message.",
            )


def _check_kept(row: Row, text: str, trained: Sequence[int]) -> None:
    """Templates leave out in silence what they do not know."""
    for number, message in enumerate(row.messages):
        if message.role != "tool" and message.content.rpartition("</think>")[2].strip() not in text:
            raise _left_out(f"what message {number} ({message.role}) says")
        if number in trained and (message.reasoning or "").strip() not in text:
            raise _left_out(f"the reasoning of message {number}, which is trained on")
        for call in message.tool_calls:
            if call.name not in text:
                raise _left_out(f"the call of `{call.name}` in message {number}")
    for tool in row.tools:
        if (name := str(tool.get("function", tool).get("name", ""))) not in text:
            raise _left_out(f"the tool `{name}`")


def _left_out(what: str) -> UserError:
    return UserError(f"the model's own chat template leaves out {what}.", f"Take it out of the row. {WAYS}")


def _query(messages: Sequence[Message], number: int) -> str:
    """The user's message that is answered."""
    return next((message.content for message in reversed(messages[:number]) if message.role == "user"), "")


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _around(one: str, other: str, width: int = 40) -> str:
    """`one` from where it parts from `other`."""
    start = _shared(one, other)
    return one[max(start - width // 2, 0) : start + width]
