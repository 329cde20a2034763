"""Show the first rows of data as a model is trained on them: text coloured by its weight in the loss, and lengths.

  swift-mega bridge show-data --model Qwen/Qwen3-0.6B --dataset data/chat.jsonl
  swift-mega bridge show-data --model models/mine --dataset alpaca-en#500 --template chatml --max-length 2048

Without --template the model's own chat template is used. No weights are read.
"""

# Read by --help, so without transformers until it runs.

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_bridge.data.config import RowsConfig
from hf_bridge.templates.config import TemplateConfig
from swift_mega.base import config as configs
from swift_mega.base.console import counted, progress, say
from swift_mega.base.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hf_bridge.data.row import Row
    from hf_bridge.templates.encoding import Encoded, Encoder

MEASURED = 1000
"""Rows whose lengths are measured."""


@dataclass(kw_only=True)
class ShowDataConfig:
    """What to show."""

    model: str
    """Folder or id whose tokenizer and chat template are used."""

    count: int = 3
    """Rows that are shown."""

    max_length: int | None = None
    """Tokens of the longest example that training will take; says how many rows are longer."""

    data: RowsConfig = field(default_factory=RowsConfig)
    text: TemplateConfig = field(default_factory=TemplateConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    configs.add_options(parser, ShowDataConfig)


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    options = configs.overrides(args, ShowDataConfig)
    config = configs.build(ShowDataConfig, options, "command line", options)
    if config.count < 1:
        raise UserError(f"--count is {config.count}.", "Show at least one row.")
    from hf_bridge.data.rows import load_rows
    from hf_bridge.templates.encoding import encoder
    from swift_mega.data.tokenizer import load_tokenizer

    rows = load_rows(config.data).train
    text = config.text
    tokenizer = load_tokenizer(config.model)
    encode = encoder(tokenizer, text.template, text.loss_scale, text.agent_format, text.allow_special)
    for number, row in enumerate(rows[: config.count], start=1):
        say(f"━━ row {number:,} of {len(rows):,}")
        _show(encode, row)
    _measure(encode, rows[:MEASURED], config.max_length)
    return 0


def _show(encode: "Encoder", row: "Row") -> None:
    """Print one row; of a preference, both answers."""
    from hf_bridge.templates.show import shown

    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    try:
        if row.rejected is None:
            say(shown(encode.encode(row), encode.tokens.tokenizer, colours))
            return
        pair = encode.encode_pair(row)
    except UserError as error:
        say(f"cannot be trained on: {error}")
        return
    for name, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        say(f"── {name}, {pair.prompt:,} tokens of the prompt in common")
        say(shown(answer, encode.tokens.tokenizer, colours))


def _measure(encode: "Encoder", rows: "Sequence[Row]", max_length: int | None) -> None:
    """Print how long rows are, and how many cannot be used or are too long."""
    lengths, trained, faults = [], 0, Counter[str]()
    with progress(len(rows), "measuring", "row") as bar:
        for row in rows:
            try:
                examples = [encode.encode(row)] if row.rejected is None else _both(encode, row)
            except UserError as error:
                faults[error.what] += 1
            else:
                lengths.append(max(map(len, examples)))
                trained += sum(example.trained for example in examples)
            bar.update(1)
    if lengths:
        lengths.sort()
        middle, most = lengths[len(lengths) // 2], lengths[int(len(lengths) * 0.95)]
        say(
            f"━━ {counted(len(lengths), 'row')}: {middle:,} tokens in the middle, 95 % have at most {most:,}, "
            f"the longest {lengths[-1]:,}; {trained:,} tokens are trained on"
        )
    if max_length is not None:
        longer = sum(length > max_length for length in lengths)
        say(f"{counted(longer, 'row')} longer than --max-length {max_length:,}")
    for fault, count in faults.most_common():
        say(f"{counted(count, 'row')} cannot be trained on: {fault}")


def _both(encode: "Encoder", row: "Row") -> "list[Encoded]":
    pair = encode.encode_pair(row)
    return [pair.chosen, pair.rejected]
