"""What a run trains on and what it holds out: sources, and a share of the documents of each. Torch-free."""

import itertools
import math

import numpy as np

from swift_mega.base.errors import UserError
from swift_mega.data.config import DataConfig
from swift_mega.data.indexed import Index

Part = tuple[float, float]
"""Documents of a source from one share of all to another: (0.9, 1.0) is the last tenth."""


def parse_split(split: str) -> list[Part | None]:
    """`969,30,1` → the parts for train, valid and test, None for an empty one.

    To the bit what megatron-core makes of it, whose own parser reads `1e-1` as two shares, though.

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
    shares = [*shares, 0.0, 0.0][:3]
    bounds = [0.0, *itertools.accumulate(share / sum(shares) for share in shares)]
    return [(begin, end) if begin < end else None for begin, end in itertools.pairwise(bounds)]


def streams(config: DataConfig, *, evaluates: bool) -> dict[str, tuple[list[str], Part]]:
    """Entries of the blend and their part for `train` and, where there is something to evaluate on, `valid` and `test`.

    Raises:
        UserError: no data, or a split that makes no sense.
    """
    if not config.train:
        raise UserError(
            "`data.train` names no data.", "Give it prefixes of .bin/.idx files: `--data.train data/books`."
        )
    own = {"train": None, "valid": config.valid, "test": config.test}
    parts = dict(zip(own, parse_split(config.split), strict=True))
    found: dict[str, tuple[list[str], Part]] = {}
    for name in own if evaluates else ["train"]:
        part = parts[name]
        if entries := own[name]:
            found[name] = entries, (0.0, 1.0)
        elif part:
            found[name] = config.train, part
    return found


def documents(index: Index, part: Part, stream: str, sequence_length: int) -> tuple[int, int, int]:
    """The first document of a part, the one behind its last, and the tokens they have.

    Rounded as BlendedMegatronDatasetBuilder does it, so that a split means what it means there.

    Raises:
        UserError: they make no sample.
    """
    first, last = (round(share * float(index.documents)) for share in part)
    tokens = int(index.lengths[first:last].sum(dtype=np.int64))
    if tokens < sequence_length + 1:
        raise UserError(
            f"{index.prefix} has {tokens} tokens in the {last - first} documents for {stream}; one sample takes "
            f"sequence_length + 1 = {sequence_length + 1}.",
            "Give more text, a shorter `data.sequence_length`, or another `data.split`.",
        )
    return first, last, tokens
