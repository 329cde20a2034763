"""What is measured of a tuner, the table of all of them, and whether it bears out what the tuners claim. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hf_bridge.experiments.contenders import CLAIMS, Claim, Contender, Quantity


class Measured(NamedTuple):
    """Of one run.

    Attributes:
        train_loss: mean over all steps.
        eval_loss: after the last one.
        trainable, parameters: when training begins; the model's with what the tuner adds.
        memory_gib: the peak of training; reserved on a GPU, resident on a CPU.
        samples_per_s: of optimizer steps alone, the first left out.
    """

    train_loss: float
    eval_loss: float
    trainable: int
    parameters: int
    memory_gib: float
    samples_per_s: float
    steps: int


class Broken(NamedTuple):
    """A claim that the figures contradict, and the quotient that was measured."""

    claim: Claim
    ratio: float

    def __str__(self) -> str:
        what = {"memory_gib": "memory", "samples_per_s": "speed"}[self.claim.quantity]
        bound = f"≤ {self.claim.most:.2f}" if self.claim.most is not None else f"≥ {self.claim.least:.2f}"
        return (
            f"{self.claim.tuner}: {what} is {self.ratio:.2f} of {self.claim.than}'s, which should be {bound}: "
            f"{self.claim.says}. SWIFT's Table 4 has {self.claim.paper:.2f}."
        )


def broken(found: Mapping[str, Measured], claims: Sequence[Claim] = CLAIMS) -> list[Broken]:
    """The claims between tuners that were both measured, which do not hold.

    Args:
        found: by tuner.
    """
    both = [claim for claim in claims if claim.tuner in found and claim.than in found]
    ratios = [
        (claim, _of(found, claim.tuner, claim.quantity) / _of(found, claim.than, claim.quantity)) for claim in both
    ]
    return [Broken(claim, ratio) for claim, ratio in ratios if not claim.holds(ratio)]


def _of(found: Mapping[str, Measured], tuner: str, quantity: Quantity) -> float:
    return float(getattr(found[tuner], quantity))


def table(compared: Sequence[Contender], found: Mapping[str, Measured], failed: Mapping[str, str]) -> str:
    """Markdown, in the columns of Table 4, a mark where a claim does not hold; below it what was contradicted.

    Args:
        failed: tuners that could not be measured, and why.
    """
    wrong = broken(found)
    rows = ["| tuner | train / eval loss | trainable (M) | memory (GiB) | speed (samples/s) |", "|---|---|---|---|---|"]
    for one in compared:
        if one.tuner in found:
            rows.append(_row(one, found[one.tuner], {(flag.claim.tuner, flag.claim.quantity) for flag in wrong}))
        else:
            rows.append(f"| {one.title} | not measured: {failed[one.tuner]} | | | |")
    return "\n".join([*rows, *(["", *(f"⚑ {flag}" for flag in wrong)] if wrong else [])])


def _row(one: Contender, found: Measured, flagged: set[tuple[str, Quantity]]) -> str:
    share = found.trainable / found.parameters
    trainable = "–" if one.changes else f"{found.trainable / 1e6:.2f} ({share:.2%})"
    memory = " ⚑" * ((one.tuner, "memory_gib") in flagged)
    speed = " ⚑" * ((one.tuner, "samples_per_s") in flagged)
    return (
        f"| {one.title} | {found.train_loss:.2f} / {found.eval_loss:.2f} | {trainable} | "
        f"{found.memory_gib:.2f}{memory} | {found.samples_per_s:.2f}{speed} |"
    )
