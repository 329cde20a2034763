"""Check that two checkpoints are the same model, byte for byte, whatever format and layout each is in.

A and B are Hugging Face folders, Megatron checkpoints or manifests (`swift-mega convert manifest`); without B,
A is checked against the manifest that lies in it. No model is built; the exit code is 1 if anything differs.
"""

import argparse
from pathlib import Path

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert verify`."""
    parser.add_argument("one", metavar="A", type=Path, help="folder or manifest")
    parser.add_argument("other", metavar="B", type=Path, nargs="?", help="folder or manifest (default: A's manifest)")


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    from converters.logical import MANIFEST, fingerprints, open_logical, read_manifest
    from swift_mega.base.console import say

    sides = [args.one, args.other or args.one / MANIFEST]
    one, other = (
        read_manifest(side) if side.is_file() or side.suffix == ".json" else fingerprints(open_logical(side))
        for side in sides
    )
    faults = [f"`{name}` is only in {sides[0]}" for name in one.keys() - other.keys()]
    faults += [f"`{name}` is only in {sides[1]}" for name in other.keys() - one.keys()]
    faults += [
        f"`{name}` differs in its {what}: {one[name].get(what)} and {other[name].get(what)}"
        for name in one.keys() & other.keys()
        if (
            what := next(
                (field for field in ("dtype", "shape", "xxh3_128") if one[name].get(field) != other[name].get(field)),
                None,
            )
        )
    ]
    for fault in sorted(faults)[:SHOWN]:
        say(fault)
    if len(faults) > SHOWN:
        say(f"and {len(faults) - SHOWN:,} more")
    same = len(one.keys() | other.keys()) - len(faults)
    say(f"{same:,} of {same + len(faults):,} tensors are byte for byte the same")
    return 1 if faults else 0
