"""How a blend of sources is written in `data.train`: prefixes, each with a weight or none with one. Torch-free."""

import os

from swift_mega.base.errors import UserError


def parse_blend(entries: list[str]) -> tuple[list[str], list[float] | None]:
    """Prefixes and weights of a list such as `["0.7 data/books", "0.3 data/code"]`; None where none has a weight.

    Raises:
        UserError: some entries with a weight and some without, a weight that is not above 0, a prefix named twice.
    """
    pairs = [_parse_entry(entry) for entry in entries]
    prefixes = [prefix for _, prefix in pairs]
    weights = [weight for weight, _ in pairs if weight is not None]
    if 0 < len(weights) < len(pairs):
        bare = next(prefix for weight, prefix in pairs if weight is None)
        raise UserError(
            f"`{bare}` has no weight while others have one.", f"Write `WEIGHT {bare}`, or drop all weights."
        )
    places = [os.path.abspath(prefix) for prefix in prefixes]
    twice = [prefix for number, prefix in enumerate(prefixes) if places[number] in places[:number]]
    if twice:
        raise UserError(f"`{twice[0]}` is listed twice.", "List it once, with the sum of the weights.")
    return prefixes, weights or None


def _parse_entry(entry: str) -> tuple[float | None, str]:
    """`0.7 data/books` → (0.7, `data/books`); without a leading number the weight is None."""
    head, _, rest = entry.strip().partition(" ")
    try:
        weight = float(head)
    except ValueError:
        return None, _prefix(entry)
    if not rest.strip():
        return None, _prefix(entry)
    if not 0 < weight < float("inf"):
        raise UserError(f"the weight in `{entry}` must be above 0.", "Leave out a source that is not to be read.")
    return weight, _prefix(rest)


def _prefix(text: str) -> str:
    """The prefix as typed; `data/books.bin` and `data/books.idx` mean `data/books`."""
    return text.strip().removesuffix(".bin").removesuffix(".idx")
