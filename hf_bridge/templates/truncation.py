"""Examples that are too long: what becomes of them, and a count of it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

from hf_bridge.templates.encoding import Encoded, EncodedPair
from swift_mega.base.errors import UserError, nearest

Policy = Literal["truncate", "drop", "split", "raise"]
"""Keep the first tokens; leave the example out; make several of it; stop."""


@dataclass
class Fitting:
    """A longest length and a policy.

    Attributes:
        counts: examples by what became of them: `fits`, `truncated`, `dropped`, `split`, and `unlabelled`, of which
            (or of parts of which) nothing that is trained on was left.
    """

    max_length: int
    policy: Policy = "drop"
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise UserError(
                f"there is no policy `{self.policy}` for long rows.", nearest(self.policy, get_args(Policy))
            )
        if self.max_length < 1:
            raise UserError(f"the longest length is {self.max_length}.", "It must be at least 1 token.")

    def fit(self, encoded: Encoded) -> list[Encoded]:
        """What is trained on of one example: parts no longer than `max_length`, each with a label.

        Raises:
            UserError: it is too long, and the policy is `raise`.
        """
        if len(encoded) <= self.max_length:
            self.counts["fits"] += 1
            return [encoded]
        if self.policy == "raise":
            raise self._too_long(len(encoded))
        if self.policy == "drop":
            self.counts["dropped"] += 1
            return []
        end = self.max_length if self.policy == "truncate" else len(encoded)
        parts = [encoded.cut(n, min(n + self.max_length, end)) for n in range(0, end, self.max_length)]
        labelled = [part for part in parts if part.trained]
        self.counts["unlabelled"] += len(parts) - len(labelled)
        if labelled:
            self.counts["truncated" if self.policy == "truncate" else "split"] += 1
        return labelled

    def fit_pair(self, pair: EncodedPair) -> EncodedPair | None:
        """The pair, its answers cut at `max_length`, or None where it is left out.

        Raises:
            UserError: as `fit`, or the policy is `split`, which would tear the answers from their prompt.
        """
        longest = max(len(pair.chosen), len(pair.rejected))
        if longest <= self.max_length:
            self.counts["fits"] += 1
            return pair
        if self.policy == "raise":
            raise self._too_long(longest)
        if self.policy == "split":
            raise UserError("a pair of answers cannot be split.", "Choose truncate, drop or raise.")
        if self.policy == "drop":
            self.counts["dropped"] += 1
            return None
        cut = EncodedPair(pair.chosen.cut(0, self.max_length), pair.rejected.cut(0, self.max_length), pair.prompt)
        if not (cut.chosen.trained and cut.rejected.trained):
            self.counts["unlabelled"] += 1
            return None
        self.counts["truncated"] += 1
        return cut

    def _too_long(self, length: int) -> UserError:
        return UserError(
            f"an example has {length:,} tokens, {length - self.max_length:,} more than {self.max_length:,}.",
            "Raise the longest length, or choose truncate, drop or split.",
        )
