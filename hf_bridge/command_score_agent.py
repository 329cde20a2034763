"""Score what a model wrote as an agent: Plan.EM, Act.EM, HalluRate, Avg.F1 and R-L, as in the SWIFT paper's tables.

  swift-mega bridge score-agent predictions.jsonl
  swift-mega bridge score-agent predictions.jsonl --agent-format hermes --json scores.json

Each row is one step of a task: `target` (or `labels`), what the model wrote in `predictions` (or `response`), and the
`tools` that it was offered.
"""

# Read by --help, so without anything heavy until it runs.

import argparse
import dataclasses
import json
from pathlib import Path

from swift_mega.base.console import say
from swift_mega.base.writing import write_errors_are_the_users


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("file", nargs="+", help="JSONL, JSON, CSV or Parquet files of predictions")
    parser.add_argument("--agent-format", default="toolbench", help="how calls are written (default: %(default)s)")
    parser.add_argument(
        "--on-bad-row",
        choices=("raise", "skip"),
        default="raise",
        help="a row that lacks something: stop with a report, or leave it out (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores to this file, too")


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    from hf_bridge.experiments.agent_metrics import score_files

    scores = score_files(args.file, args.agent_format, args.on_bad_row)
    say(str(scores))
    if args.json is not None:
        with write_errors_are_the_users(args.json, option="`--json`"):
            args.json.write_text(json.dumps(dataclasses.asdict(scores), indent=1) + "\n", encoding="utf-8")
    return 0
