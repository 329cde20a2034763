"""What rows a method is trained on. Torch-free: `--help` reads it."""

from dataclasses import dataclass, field
from typing import Literal

from swift_mega.base.readers import OnBadRow, TxtDocuments

Mix = Literal["concatenate", "interleave", "replacement"]
Stopping = Literal["first_exhausted", "all_exhausted"]


@dataclass(kw_only=True)
class RowsConfig:
    """Rows of conversations, preferences or texts, and how they are read and mixed."""

    dataset: list[str] = field(default_factory=list)
    """What to train on: files, folders, globs, `org/name`, `hf::org/name:subset/split#2000`, `ms::…`, or a name such
    as `alpaca-en`; each optionally preceded by its weight: `0.7 data/chat.jsonl`."""

    val_dataset: list[str] = field(default_factory=list)
    """As `dataset`, for evaluation. Empty: cut from `dataset` by `val_share`."""

    val_share: float = 0.0
    """Share of the rows of `dataset` that is held out for evaluation, from 0 up to, not including, 1."""

    columns: list[str] = field(default_factory=list)
    """`theirs=ours`, for columns whose names are not recognised: `question_text=query`."""

    keep_columns: list[str] = field(default_factory=list)
    """Columns that a row keeps besides, such as the solution that a reward function compares with."""

    strict_columns: bool = False
    """A column that nothing reads makes a bad row. Otherwise such columns are reported."""

    on_bad_row: OnBadRow = "raise"
    """A row that is wrong: stop with a report of all of them, or leave it out and report it."""

    txt_documents: TxtDocuments = "file"
    """What a row is in a `.txt` file."""

    mix: Mix = "concatenate"
    """Several sources: one behind the other, or drawn by weight row by row: each row of a source once before one comes
    again (`interleave`), or whichever comes (`replacement`, which needs `rows`)."""

    stopping: Stopping = "first_exhausted"
    """When `interleave` ends: with the first source whose rows are used up, or once all have been, while the shorter
    ones start over."""

    rows: int | None = None
    """Rows to draw with `mix: replacement`."""

    shuffle: bool = True
    """Shuffle the rows once; an epoch may do so again."""

    seed: int = 42
    """Of everything that is drawn here."""

    model_name: list[str] = field(default_factory=list)
    """What {{NAME}} stands for in data of self-cognition; one for all, or the Chinese and the English one."""

    model_author: list[str] = field(default_factory=list)
    """What {{AUTHOR}} stands for there."""

    workers: int | None = None
    """Processes that read. null: one per core."""

    cache_dir: str | None = None
    """Where rows are kept once they are read. null: `~/.cache/swift-mega/rows`."""
