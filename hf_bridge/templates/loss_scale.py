"""How much each part of an answer weighs in the loss: rules that chain, as `last_round+ignore_empty_think`.

The first kind of rule chooses the messages (`default`, `last_round`, `all`); the others look for patterns in what
the assistant wrote, and their weights multiply. A pattern weighs its match, and what follows it up to the next
pattern of the same rule. Your own rule is a file, YAML or JSON:

    response: {"Action:": [3, 3], "Observation:": 2}   # [match, what follows] or the match alone
    query: {"which tool": 3}                           # the whole answer to a message of the user that says so
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hf_bridge.data.row import Message
from swift_mega.base.config import read_yaml
from swift_mega.base.errors import UserError, nearest

CHOICES = ("default", "last_round", "all")
"""Which messages are trained on: the assistant's, those since the last user message, or every token there is."""


class Pattern(NamedTuple):
    """A regular expression, the weight of what it matches, and of what follows (None: unchanged)."""

    regex: str
    weight: float
    following: float | None = None


@dataclass(frozen=True)
class Rule:
    """Patterns looked for together."""

    response: tuple[Pattern, ...] = ()
    query: tuple[Pattern, ...] = ()

    def spans(self, text: str, query: str) -> list[tuple[int, float]]:
        """Where in `text` which weight begins, from 0 on."""
        asked = next((p.weight for p in self.query if re.search(p.regex, query, re.IGNORECASE)), None)
        if asked is not None:
            return [(0, asked)]
        starts, position, following = [(0, 1.0)], 0, 1.0
        while found := self._first(text, position):
            match, pattern = found
            following = 1.0 if pattern.following is None else pattern.following
            starts += [(match.start(), pattern.weight), (match.end(), following)]
            position = match.end()
        return starts

    def _first(self, text: str, position: int) -> tuple[re.Match[str], Pattern] | None:
        """The next match in `text`; of two that begin together, the longer one."""
        found = [
            (match, p) for p in self.response if (match := re.compile(p.regex).search(text, position)) and match[0]
        ]
        return min(found, key=lambda pair: (pair[0].start(), -pair[0].end()), default=None)


def _words(*words: str, weight: float, following: float | None) -> tuple[Pattern, ...]:
    return tuple(Pattern(re.escape(word), weight, following) for word in words)


RULES = {
    "ignore_empty_think": Rule(response=(Pattern(r"<think>\s*</think>\s*", 0.0),)),
    # SWIFT's Table 14. It names the four kinds of queries, not their words, which your own file can say.
    "agent": Rule(
        response=_words(
            *("Name:", "Action:", "Action Input:", "Tool:", "Command", "Arguments:"), weight=3.0, following=3.0
        )
        + _words("Observation:", weight=2.0, following=None),
        query=tuple(
            Pattern(regex, 3.0)
            for regex in (r"tool selection", r"param(eter)? recall", r"param(eter)? name", r"param(eter)? value")
        ),
    ),
    # The two of them that ReAct has.
    "react": Rule(
        response=_words("Action:", "Action Input:", weight=3.0, following=3.0)
        + _words("Observation:", weight=2.0, following=None)
        + _words("Thought:", "Final Answer:", weight=1.0, following=1.0)
    ),
}


@dataclass(frozen=True)
class LossScale:
    """Chained rules.

    Attributes:
        choice: one of `CHOICES`.
        rules: whose weights multiply.
    """

    choice: str = "default"
    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, words: str) -> "LossScale":
        """`words` joined by `+`: a choice, names of rules, paths of files.

        Raises:
            UserError: a word that is none of them, or a file that is no rule.
        """
        choice, rules = "default", []
        for word in words.split("+"):
            if word in CHOICES:
                choice = word
            elif word in RULES:
                rules.append(RULES[word])
            elif Path(word).suffix in (".json", ".yaml", ".yml"):
                rules.append(read_rule(Path(word)))
            else:
                known = [*CHOICES, *RULES]
                raise UserError(f"there is no loss scale `{word}`.", f"{nearest(word, known)}; or the path of a file.")
        return cls(choice, tuple(rules))

    @property
    def of_template(self) -> float:
        """Weight of the template's own text."""
        return 1.0 if self.choice == "all" else 0.0

    def of_messages(self, messages: Sequence[Message]) -> list[float]:
        """Weight of each message before patterns: what it says itself, or else what the choice says."""
        last_user = max((n for n, message in enumerate(messages) if message.role == "user"), default=-1)

        def chosen(number: int, message: Message) -> bool:
            if message.loss is not None:
                return message.loss
            written = message.role == "assistant" and (self.choice != "last_round" or number > last_user)
            return self.choice == "all" or written

        return [
            chosen(number, message) * (1.0 if message.loss_scale is None else message.loss_scale)
            for number, message in enumerate(messages)
        ]

    def spans(self, text: str, query: str, message: Message) -> list[tuple[str, float]]:
        """`text` of an answer in pieces with their weights; a message with its own scale is not looked into."""
        if not self.rules or message.loss_scale is not None:
            return [(text, 1.0)]
        tables = [rule.spans(text, query) for rule in self.rules]
        edges = sorted({start for table in tables for start, _ in table} | {len(text)})
        return [
            (text[first:last], math.prod(_weight_at(table, first) for table in tables))
            for first, last in itertools.pairwise(edges)
        ]


def _weight_at(table: list[tuple[int, float]], position: int) -> float:
    return next(weight for start, weight in reversed(table) if start <= position)


def read_rule(path: Path) -> Rule:
    """A rule from a file of patterns.

    Raises:
        UserError: it cannot be read, or a pattern or a weight in it is wrong.
    """
    values = read_yaml(path)  # JSON is YAML
    unknown = sorted(set(values) - {"response", "query"})
    if unknown:
        raise UserError(f"{path}: there is no part `{unknown[0]}`.", "Patterns go under `response` or `query`.")
    parts = {name: _patterns(path, name, values.get(name) or {}) for name in ("response", "query")}
    return Rule(**parts)


def _patterns(path: Path, part: str, values: Any) -> tuple[Pattern, ...]:
    if not isinstance(values, dict):
        raise UserError(f"{path}: `{part}` is {values!r}.", 'It must hold `"pattern": weight` pairs.')
    patterns = []
    for regex, given in values.items():
        weights = given if isinstance(given, list) else [given]
        numbers = [float(w) for w in weights if type(w) in (int, float) and 0 <= w < math.inf]
        if len(numbers) != len(weights) or not 1 <= len(weights) <= (2 if part == "response" else 1):
            raise UserError(
                f"{path}: the weight of `{regex}` under `{part}` is {given!r}.",
                "It must be a number from 0 on, or under `response` a list of two: of the match and what follows.",
            )
        try:
            re.compile(str(regex))
        except re.error as error:
            raise UserError(
                f"{path}: `{regex}` is no regular expression: {error}.", "Escape signs with `\\`."
            ) from None
        patterns.append(Pattern(str(regex), *numbers))
    return tuple(patterns)
