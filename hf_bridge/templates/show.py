"""One example as text for people: coloured by what it weighs in the loss, and how long it is."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from hf_bridge.templates.encoding import Encoded

RESET = "\x1b[0m"

COLOURS = ((0.0, "\x1b[2m"), (1.0, "\x1b[36m"), (1.5, "\x1b[32m"), (2.5, "\x1b[33m"), (float("inf"), "\x1b[31m"))
"""Largest weight and its colour: not trained on (dim), up to 1, and above."""


def shown(encoded: Encoded, tokenizer: Any, colours: bool) -> str:
    """Text of an example, and a line of lengths.

    Args:
        colours: by escape codes, for a terminal; otherwise what is trained on stands between `⟦weight│` and `⟧`.
    """
    text = "".join(_piece(weight, text, colours) for weight, text in _pieces(encoded, tokenizer))
    kinds = ", ".join(f"{kind} {length:,}" for kind, length in encoded.lengths.items())
    weights = sorted({weight for weight in encoded.loss_weights if weight})
    seen = ", ".join(f"{weight:g}" for weight in weights)
    summary = f"{len(encoded):,} tokens ({kinds}), {encoded.trained:,} of them trained on, with weight {seen or 'none'}"
    return f"{text}\n{summary}"


def _pieces(encoded: Encoded, tokenizer: Any) -> Iterator[tuple[float, str]]:
    """Runs of tokens of one weight as text."""
    pairs = zip(encoded.loss_weights, encoded.input_ids, strict=True)
    for weight, run in groupby(pairs, key=lambda pair: pair[0]):
        ids = [token for _, token in run]
        yield weight, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _piece(weight: float, text: str, colours: bool) -> str:
    if colours:
        return f"{next(colour for limit, colour in COLOURS if weight <= limit)}{text}{RESET}"
    return f"⟦{weight:g}│{text}⟧" if weight else text
