"""Write a manifest of a model: for each tensor its dtype, shape and a hash of its bytes, by its Hugging Face name.

The hashes are the same whatever format and layout the model lies in, so that `swift-mega convert verify` can tell
later, and elsewhere, whether a checkpoint still is that model.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert manifest`."""
    parser.add_argument("path", metavar="PATH", type=Path, help="Hugging Face folder or Megatron checkpoint")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write it (default: PATH/tensors.xxh3.json)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FOLDER", help="where config.json is, for checkpoints that have none"
    )


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    from converters.checkpoint import MANIFEST
    from converters.logical import fingerprints, open_logical, write_manifest
    from swift_mega.base.console import counted, say
    from swift_mega.base.errors import UserError
    from swift_mega.base.writing import write_errors_are_the_users

    model = open_logical(args.path, args.config)
    output = args.output or args.path / MANIFEST
    # Now, not after hours of reading.
    if not output.parent.is_dir() or output.is_dir():
        what = "it is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise UserError(f"{output} cannot be written: {what}.", "Name a file in a folder that is there with --output.")
    tensors = fingerprints(model)
    with write_errors_are_the_users(output, option="--output"):
        write_manifest(output, tensors)
    say(f"wrote {output}: {counted(len(tensors), 'tensor')}")
