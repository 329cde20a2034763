"""ROUGE-L: how much of a text is in another in the same order. Lin 2004, by the package `rouge-score`."""

import functools
import re
from typing import Any

from swift_mega.base.errors import UserError

TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)
"""A word, or one sign of a script that does not part words."""


class Words:
    """Tokenizer of `rouge-score`, whose own knows no letters but those of English."""

    def tokenize(self, text: str) -> list[str]:
        """Words in lower case; Chinese, Japanese and Korean sign by sign."""
        return TOKEN.findall(text.lower())


def rouge_l(prediction: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, from 0 to 1.

    With l its length, precision l ÷ words of `prediction` and recall l ÷ words of `reference`.

    Raises:
        UserError: `rouge-score` is not installed.
    """
    return float(_scorer().score(reference, prediction)["rougeL"].fmeasure)


@functools.cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE-L needs the package rouge-score.", "pip install 'swift-mega[rouge]'") from None
    return RougeScorer(["rougeL"], tokenizer=Words())
