"""The short way to name data: `[WEIGHT ][hf::|ms::]NAME[:SUBSET][/SPLIT][#ROWS]`.

    data/chat.jsonl#500                  500 rows of a file; also folders and globs
    org/name                             a data set on Hugging Face, split `train`
    hf::org/name:subset/split#2000       with its subset and split
    ms::org/name:/test                   on ModelScope, the default subset
    alpaca-en                            by a name of `registry.DATA_SETS`
    0.7 org/name                         with a weight where sources are interleaved

Torch-free.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from hf_bridge.data.registry import DATA_SETS, Hub, data_set
from swift_mega.base.errors import UserError
from swift_mega.base.hub import is_id
from swift_mega.base.readers import Corpus, TxtDocuments, find_files

WEIGHTED = re.compile(r"(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?) +(?P<name>.+)")
HUB = re.compile(r"(?:(?P<hub>hf|ms)::)?(?P<name>[^:]+)(?::(?P<subset>[^/]*)(?:/(?P<split>.+))?)?")
GLOB = re.compile(r"[*?[]")
HUBS: dict[str | None, Hub | None] = {"hf": "hf", "ms": "ms", None: None}
FORM = "Write `org/name`, `hf::org/name:subset/split#2000`, or the path of a file (`#2000` behind it takes 2,000 rows)."


@dataclass(frozen=True, kw_only=True)
class SourceName:
    """What a short name means.

    Attributes:
        path: of a file, a folder or a glob, or `hf::id` or `ms::id`.
        subset, split: of a data set on a hub.
        count: rows to take; None: all.
        columns: theirs → ours, as the registry has it.
        self_cognition: the rows leave open who the model is.
    """

    text: str
    path: str
    subset: str | None = None
    split: str = "train"
    count: int | None = None
    weight: float | None = None
    columns: dict[str, str] = field(default_factory=dict)
    self_cognition: bool = False

    def corpus(self, txt_documents: TxtDocuments) -> Corpus:
        """Its readers, which give whole rows.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        return Corpus([self.path], text_key=None, txt_documents=txt_documents, subset=self.subset, split=self.split)


def parse_source(text: str) -> SourceName:
    """What `text` means; what exists as a file is one, whatever else it could be.

    Raises:
        UserError: not of the form above, a count or a weight that is not above 0, an unknown name.
    """
    weighted = None if Path(text).expanduser().exists() else WEIGHTED.fullmatch(text.strip())
    weight = float(weighted["weight"]) if weighted else None
    if weight is not None and not 0 < weight < float("inf"):
        raise UserError(f"the weight in `{text}` must be above 0.", "Leave out a source that is not to be read.")
    name, count = _count(weighted["name"] if weighted else text.strip(), text)
    return replace(_named(name, text), text=text, count=count, weight=weight)


def _count(name: str, text: str) -> tuple[str, int | None]:
    before, sign, rows = name.rpartition("#")
    if not sign or Path(name).expanduser().exists():
        return name, None
    if not (rows.isdecimal() and int(rows) > 0 and before):
        raise UserError(f"`{text}`: `#{rows}` is no number of rows.", FORM)
    return before, int(rows)


def _named(name: str, text: str) -> SourceName:
    found = HUB.fullmatch(name)
    if Path(name).expanduser().exists() or GLOB.search(found["name"] if found else name):
        return SourceName(text=text, path=name)
    if found is None:
        raise UserError(f"`{text}` is neither a file nor a data set.", FORM)
    hub = HUBS[found["hub"]]
    if found["name"] not in DATA_SETS:
        _check_id(hub, found["name"], text)
        path = f"{hub or 'hf'}::{found['name']}"
        return SourceName(text=text, path=path, subset=found["subset"] or None, split=found["split"] or "train")
    entry = data_set(found["name"])
    there, repository = entry.id(hub, found["name"])
    return SourceName(
        text=text,
        path=f"{there}::{repository}",
        subset=found["subset"] or entry.subset,
        split=found["split"] or entry.split,
        columns=entry.columns,
        self_cognition=entry.self_cognition,
    )


def _check_id(hub: Hub | None, name: str, text: str) -> None:
    """That `name` can be the id of a data set; what looks like a path is told that it is none."""
    if hub is None and ("/" in name or "." in name):
        if find_files(name) is not None:
            raise UserError(f"`{text}`: `{name}` is on this machine, where it has neither subset nor split.", FORM)
    elif not is_id(name):
        data_set(name)
