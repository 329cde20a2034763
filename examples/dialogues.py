"""Questions and answers as JSONL, and preference pairs built from them, from the PyPI package `chatterbot-corpus`.

    python -m examples.dialogues demo/tune

Writes train.jsonl and held.jsonl, and train-pairs.jsonl and held-pairs.jsonl: an answer, and as the worse one the right
answer to another question. No question of one half is in the other, however many answers it has. The English dialogues
under the BSD licence; needs `pip install --no-deps chatterbot-corpus`.
"""

import json
import random
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

import yaml

from swift_mega.base import failures
from swift_mega.base.console import say
from swift_mega.base.errors import UserError

PACKAGE = "chatterbot-corpus"
LEFT_OUT = ("coding", "tech_support")
"""Files of long answers, which would be most of the tokens and are another kind of text."""
MOST_WORDS = 40
"""Of an answer, so that 30 steps on two cores take a minute."""
HELD_SHARE = 0.07
SEED = 0


class Pair(NamedTuple):
    """A question and one of its answers."""

    question: str
    answer: str


def write_dialogues(target: Path) -> None:
    """Write the four files into the folder `target`; each appears when it is complete.

    Raises:
        UserError: the package is not installed.
    """
    target.mkdir(parents=True, exist_ok=True)
    parts = dict(zip(("train", "held"), split(list(pairs())), strict=True))
    for name, part in parts.items():
        _write(target / f"{name}.jsonl", [_chat(pair) for pair in part])
        _write(target / f"{name}-pairs.jsonl", [_choice(pair, worse) for pair, worse in preferences(part)])
    say(f"wrote {target}: {len(parts['train'])} answers to train on, {len(parts['held'])} held out, and pairs of them")


def pairs() -> Iterator[Pair]:
    """Every short answer of two-turn dialogues, in the order of the files."""
    for file in _dialogue_files():
        # Without types: `Yes.` is a word, and 42 the answer.
        conversations = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["conversations"]
        for turns in conversations:
            if len(turns) == 2 and all(isinstance(turn, str) and turn.strip() for turn in turns):
                if len(turns[1].split()) <= MOST_WORDS:
                    yield Pair(turns[0].strip(), turns[1].strip())


def split(given: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """To train on, and held out: apart by question, whatever its case and signs."""
    questions = sorted({_key(pair) for pair in given})
    held = set(random.Random(SEED).sample(questions, round(HELD_SHARE * len(questions))))
    return [pair for pair in given if _key(pair) not in held], [pair for pair in given if _key(pair) in held]


def preferences(given: list[Pair]) -> list[tuple[Pair, str]]:
    """Each pair with the answer of a pair that has another question, and is another text."""
    draws = random.Random(SEED)
    found = []
    for pair in given:
        other = draws.choice(given)
        while _key(other) == _key(pair) or other.answer == pair.answer:
            other = draws.choice(given)
        found.append((pair, other.answer))
    return found


def _key(pair: Pair) -> str:
    return "".join(letter for letter in pair.question.lower() if letter.isalnum())


def _chat(pair: Pair) -> dict[str, object]:
    turns = (("user", pair.question), ("assistant", pair.answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _choice(pair: Pair, worse: str) -> dict[str, object]:
    return {"prompt": pair.question, "chosen": pair.answer, "rejected": worse}


def _write(target: Path, rows: list[dict[str, object]]) -> None:
    partial = target.with_name(target.name + ".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(target)


def _dialogue_files() -> list[Path]:
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        raise UserError(f"{PACKAGE} is not installed.", f"pip install --no-deps {PACKAGE}") from None
    english = [file for file in listed if file.parent.name == "english" and file.suffix == ".yml"]
    return sorted(Path(str(file.locate())) for file in english if file.stem not in LEFT_OUT)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with failures.explained() as outcome:
        write_dialogues(Path(sys.argv[1]))
    sys.exit(outcome.exit_code)
