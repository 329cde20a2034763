"""How data is written in a configuration: prefixes with or without weights, and shares of a split. Torch-free."""

import math

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
    twice = [prefix for number, prefix in enumerate(prefixes) if prefix in prefixes[:number]]
    if twice:
        raise UserError(f"`{twice[0]}` is listed twice.", "List it once, with the sum of the weights.")
    return prefixes, weights or None


def parse_split(split: str) -> list[float]:
    """`969,30,1` → the shares of train, valid and test, as they stand; those left out are 0.

    Raises:
        UserError: not one to three numbers, a negative one, or nothing to train on.
    """
    try:
        shares = [float(share) for share in split.replace("/", ",").split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or not all(0 <= share < math.inf for share in shares):
        raise UserError(f"`data.split` {split!r} is not up to three shares.", "For example `969,30,1`, or `100,0,0`.")
    if shares[0] == 0:
        raise UserError(f"`data.split` {split} leaves nothing to train on.", "Its first number must be above 0.")
    return [*shares, 0.0, 0.0][:3]


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
