"""Byte for byte the same model or not: what `swift-mega convert verify` does without torch.

A and B are Hugging Face folders, Megatron checkpoints or manifests (`swift-mega convert manifest`); without B,
A is checked against the manifest that lies in it. The exit code is 1 if anything differs.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert verify`."""
    parser.add_argument("one", metavar="A", type=Path, help="folder or manifest")
    parser.add_argument("other", metavar="B", type=Path, nargs="?", help="folder or manifest (default: A's manifest)")
    parser.add_argument(
        "--config", type=Path, metavar="FOLDER", help="where config.json is, for checkpoints that have none"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    from converters.checkpoint import MANIFEST
    from converters.logical import differences
    from swift_mega.base.console import say
    from swift_mega.base.errors import UserError

    if args.other is None and not (args.one / MANIFEST).is_file():
        raise UserError(
            f"{args.one} has no {MANIFEST} to be checked against.",
            f"Write one with `swift-mega convert manifest {args.one}` while it is what it should be, or give B.",
        )
    sides = [args.one, args.other or args.one / MANIFEST]
    # Both are opened before either is read, which takes long.
    one, other = (read() for read in [_opened(side, args.config) for side in sides])
    faults = differences(one, other, *map(str, sides))
    for fault in faults[:SHOWN]:
        say(fault)
    if len(faults) > SHOWN:
        say(f"and {len(faults) - SHOWN:,} more")
    same = len(one.keys() | other.keys()) - len(faults)
    say(f"{same:,} of {same + len(faults):,} tensors are byte for byte the same")
    return 1 if faults else 0


def _opened(side: Path, config: Path | None) -> Callable[[], dict[str, dict[str, Any]]]:
    """What reads the fingerprints: of a manifest, or of a folder's tensors."""
    from converters.logical import fingerprints, open_logical, read_manifest
    from converters.stores.gguf_file import SUFFIX

    if side.suffix != SUFFIX and (side.is_file() or side.suffix == ".json"):
        return partial(read_manifest, side)
    return partial(fingerprints, open_logical(side, config))
