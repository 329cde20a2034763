"""What a person is told of data that was read: how many rows in which format, what was left out, what nothing reads."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from swift_mega.base.console import counted
from swift_mega.base.readers import SHOWN_BAD_ROWS, BadRow, BadRows


@dataclass
class Report:
    """Of one source, or of several together.

    Attributes:
        formats: rows of each format.
        bad: rows that were left out.
        columns: rows that have each column, by its own name; of all rows that could be read.
        unused: rows in which nothing reads a column; `messages.name` is a field of a turn.
    """

    formats: Counter[str] = field(default_factory=Counter)
    bad: BadRows = field(default_factory=BadRows)
    columns: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """Good ones."""
        return self.formats.total()

    def add(self, other: "Report") -> None:
        """Count in what another source, or another piece of this one, has."""
        self.formats += other.formats
        self.columns += other.columns
        self.unused += other.unused
        self.bad.reasons += other.bad.reasons
        self.bad.first = (self.bad.first + other.bad.first)[:SHOWN_BAD_ROWS]

    def __str__(self) -> str:
        kinds = ", ".join(
            name if len(self.formats) == 1 else f"{count:,} {name}" for name, count in self.formats.most_common()
        )
        lines = [counted(self.rows, "row") + (f" ({kinds})" if kinds else "")]
        if self.unused:
            names = ", ".join(f"`{name}` ({count:,})" for name, count in sorted(self.unused.items()))
            lines.append(f"not used: {names}")
        if self.bad.reasons:
            lines.append(f"left out {self.bad}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "formats": dict(self.formats),
            "columns": dict(self.columns),
            "unused": dict(self.unused),
            "reasons": dict(self.bad.reasons),
            "first": [list(row) for row in self.bad.first],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Report":
        """What `to_dict` has given."""
        bad = BadRows(Counter(values["reasons"]), [BadRow(*row) for row in values["first"]])
        return cls(Counter(values["formats"]), bad, Counter(values["columns"]), Counter(values["unused"]))
