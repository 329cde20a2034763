"""Say how far apart two checkpoints are, tensor by tensor, whatever format, layout and dtype each is in.

For every tensor that differs: how many of its elements, the largest difference, and that difference relative to the
largest element. The exit code is 1 if anything differs by more than --tolerance.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert diff`."""
    parser.add_argument("one", metavar="A", type=Path, help="Hugging Face folder or Megatron checkpoint")
    parser.add_argument("other", metavar="B", type=Path, help="Hugging Face folder or Megatron checkpoint")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="largest relative difference allowed (default: 0)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FOLDER", help="where config.json is, for checkpoints that have none"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    import contextlib

    from converters import engine
    from converters.difference import compared
    from converters.logical import arrays, open_logical
    from swift_mega.base.console import say
    from swift_mega.base.errors import UserError

    if not args.tolerance >= 0:  # nor is nan, with which nothing would ever differ
        raise UserError(f"--tolerance is {args.tolerance:g}.", "Give a number from 0 on.")
    one, other = (open_logical(side, args.config) for side in (args.one, args.other))
    apart = 0
    for name in sorted(one.tensors.keys() ^ other.tensors.keys()):
        say(f"`{name}` is only in {args.one if name in one.tensors else args.other}")
        apart += 1
    with contextlib.closing(engine.Files()) as files:
        for name, array in arrays(one, "comparing"):
            if name not in other.tensors:
                continue
            found = compared(array, one.tensors[name], other.read(name, files), other.tensors[name])
            if found is not None:
                say(f"`{name}` {found}")
                apart += found.relative > args.tolerance
    names = len(one.tensors.keys() | other.tensors.keys())
    say(f"{apart:,} of {names:,} tensors differ by more than {args.tolerance:g}")
    return 1 if apart else 0
