"""Upload a Hugging Face folder to a repository on Hugging Face or ModelScope.

The repository is made if there is none; in one that exists, the weights are replaced and what the folder does not
have is left alone. The token is taken from where the hub's client keeps it. What a repository has already is not
sent again, so an upload that was interrupted goes on when the same command is given again.
"""

# Read by --help, so without torch until it runs.

import argparse
from pathlib import Path

from swift_mega.base.console import say
from swift_mega.base.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert push`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a model or adapter in Hugging Face format")
    parser.add_argument("repository", metavar="REPO", help=REPOSITORY)
    parser.add_argument("--private", action="store_true", help=PRIVATE)


REPOSITORY = "owner/name on Hugging Face, or ms::owner/name on ModelScope"
PRIVATE = "make the repository private, and do not write to a public one"


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    from swift_mega.base.upload import repository

    destination = repository(args.repository, args.private)
    if not _is_complete(args.folder):
        raise UserError(
            f"{args.folder} is no complete model or adapter in Hugging Face format.",
            "Give a folder with config.json and all weights, such as `swift-mega convert` writes with --to hf.",
        )
    destination.check()
    say(f"uploaded {args.folder} to {destination.send(args.folder)}")


def _is_complete(folder: Path) -> bool:
    from converters import adapters, lora_config
    from swift_mega.base.hub import is_complete

    adapter = (folder / lora_config.CONFIG, folder / adapters.WEIGHTS)
    return is_complete(folder) or all(file.is_file() for file in adapter)
