"""Whether an answer is right: its result, normalised, against the row's solution; as text or as a number. Torch-free.

What is taken for the result of a text is its last `\\boxed{…}`, or its last `<answer>…</answer>`, or what stands behind
its last `####`, or what follows its last “answer is”. Without any of these a solution is all of the text, and an answer
all of it or its last number.
"""

import re
from fractions import Fraction

from hf_bridge.data.row import Row
from hf_bridge.methods.rewards.reward import Answer, OfOne
from swift_mega.base.errors import UserError

COLUMNS = ("solution", "answer", "ground_truth")
"""Where the solution is looked for."""

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?")
_MARKED = (
    re.compile(r".*<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE),
    re.compile(r".*####\s*([^\n]+)", re.DOTALL),
    re.compile(r".*\banswer\s*(?:is|:|=)\s*([^\n]+?)(?:\.(?:\s|$)|\n|$)", re.DOTALL | re.IGNORECASE),
)
_FRACTION = re.compile(r"\\frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}|\\frac\s*(\d)\s*(\d)")
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|,|;|!|:|quad|%)|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\^\s*\{?\\circ\}?|[$%\s]|°"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def accuracy(column: str = "", tolerance: float = 1e-6) -> OfOne:
    """1 where the answer's result is the row's solution, 0 where it is not, None where the row has none.

    Args:
        column: of `keep_columns`, in the place of `solution`, `answer` or `ground_truth`.
        tolerance: largest relative difference of two numbers that are the same.
    """

    def score(answer: Answer, row: Row) -> float | None:
        wanted = solution(row, column)
        return None if wanted is None else float(right(answer.text, wanted, tolerance))

    return score


def solution(row: Row, column: str = "") -> str | None:
    """The row's solution as text.

    Raises:
        UserError: `column` is given and the row has none.
    """
    if column and column not in row.extra:
        raise UserError(f"it has no column `{column}`.", f"Keep it with `--keep-columns {column}`.")
    for name in (column,) if column else COLUMNS:
        if row.extra.get(name) is not None:
            return str(row.extra[name])
    return None


def right(answer: str, wanted: str, tolerance: float = 1e-6) -> bool:
    """Whether what an answer gives as its result is that of the solution."""
    marked, target = result(answer), result(wanted)
    results = [answer, *_NUMBER.findall(answer)[-1:]] if marked is None else [marked]
    return any(same(found, wanted if target is None else target, tolerance) for found in results)


def result(text: str) -> str | None:
    """What a text marks as its result; None: nothing."""
    if (boxed := _last_boxed(text)) is not None:
        return boxed
    return next((match[1].strip() for marked in _MARKED if (match := marked.match(text))), None)


def same(one: str, other: str, tolerance: float = 1e-6) -> bool:
    """Whether two results are the same text, the same number, or lists of such."""
    one, other = normalised(one), normalised(other)
    if one == other:
        return True
    first, second = _as_number(one), _as_number(other)
    if first is not None and second is not None:
        return abs(first - second) <= Fraction(tolerance) * max(abs(first), abs(second))
    parts = [_parts(text) for text in (one, other)]
    return len(parts[0]) == len(parts[1]) > 1 and all(same(a, b, tolerance) for a, b in zip(*parts, strict=True))


def normalised(text: str) -> str:
    """Lower case, without what is layout or a unit: blanks, `$`, `%`, `\\text{…}`, degrees, commas of thousands."""
    text = re.sub(r"\\[dt]frac", r"\\frac", text.strip())
    text = _FRACTION.sub(lambda m: f"({m[1] or m[3]})/({m[2] or m[4]})", text)
    text = _THOUSANDS.sub("", _DROPPED.sub("", text)).rstrip(".").lower()
    return re.sub(r"\((-?[\d.]+)\)/\((-?[\d.]+)\)", r"\1/\2", text)


def _last_boxed(text: str) -> str | None:
    """What is in the last `\\boxed{…}`, whose braces may be nested."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for end in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end]
    return None


def _as_number(text: str) -> Fraction | None:
    if not _NUMBER.fullmatch(text) and not re.fullmatch(r"-?[\d.]+/-?[\d.]+", text):
        return None
    above, _, below = text.replace(",", "").partition("/")
    try:
        return Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _parts(text: str) -> list[str]:
    """Entries of a tuple, list or set; a text that is none is its own."""
    inner = re.fullmatch(r"\\?[(\[{](.*?)\\?[)\]}]", text)
    return (inner[1] if inner else text).split(",")
