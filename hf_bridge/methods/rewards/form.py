"""How an answer is written: its form, its length, what it repeats. Torch-free."""

import math
import re

from hf_bridge.data.row import Row
from hf_bridge.methods.rewards.accuracy import accuracy
from hf_bridge.methods.rewards.reward import Answer, OfOne
from swift_mega.base.errors import UserError, nearest

FORMS = {
    "think-answer": r"<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>\s*",
    "think": r"<think>(?:(?!</?think>).)*</think>\s*(?:(?!</?think>).)*\S\s*",
}
"""What an answer has to look like, by name."""


def format_(form: str = "think-answer", opened: bool = False) -> OfOne:
    """1 where the whole answer has the form, else 0 (DeepSeek-R1, arXiv 2501.12948, §2.2.2).

    Args:
        form: `think-answer`: `<think>…</think><answer>…</answer>`; `think`: `<think>…</think>` and something behind it.
        opened: the template has already written `<think>`.
    """
    if form not in FORMS:
        raise UserError(f"there is no form `{form}`.", nearest(form, FORMS))
    pattern = re.compile(r"\s*" + FORMS[form], re.DOTALL)
    return lambda answer, row: float(bool(pattern.fullmatch("<think>" * opened + answer.text)))


def length(limit: int, cache: int) -> OfOne:
    """0 up to limit − cache tokens, falling to −1 at `limit`, −1 beyond: soft overlong punishment (DAPO, arXiv
    2503.14476, eq. 13).

    Args:
        limit: tokens of the longest answer that is taken.
        cache: tokens before it over which the punishment grows.
    """
    if not 0 < cache <= limit:
        raise UserError(f"`cache` is {cache} and `limit` {limit}.", "It must be 1 to `limit` tokens.")
    return lambda answer, row: min(0.0, max(-1.0, (limit - cache - answer.tokens) / cache))


def cosine(
    limit: int,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
    exceeded: float = -1.0,
    column: str = "",
) -> OfOne:
    """Right answers are worth more the shorter they are, wrong ones the longer: (arXiv 2502.03373, §4.2)
    long + (short − long) · (1 + cos(π · tokens ÷ limit)) ÷ 2, and `exceeded` from `limit` on.

    Args:
        limit: tokens.
        column: as in `accuracy`, which says what is right.
    """
    right = accuracy(column)

    def score(answer: Answer, row: Row) -> float | None:
        judged = right(answer, row)
        if judged is None:
            return None
        if answer.tokens >= limit:
            return exceeded
        short, long = (right_short, right_long) if judged else (wrong_short, wrong_long)
        return long + (short - long) * (1 + math.cos(math.pi * answer.tokens / limit)) / 2

    return score


def repetition(words: int = 20, penalty: float = -1.0) -> OfOne:
    """`penalty` times the share of word n-grams that were there before (arXiv 2502.03373, appendix on the N-gram
    repetition penalty); 0 for an answer shorter than one.

    Args:
        words: of an n-gram; a text without blanks between words counts each letter.
        penalty: for an answer that is all repetition.
    """
    if words < 1:
        raise UserError(f"`words` is {words}.", "An n-gram has at least one word.")

    def score(answer: Answer, row: Row) -> float:
        units = answer.text.lower().split()
        if len(units) < 2 < len(answer.text):
            units = list(answer.text)
        grams = [tuple(units[n : n + words]) for n in range(len(units) - words + 1)]
        return penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0

    return score
