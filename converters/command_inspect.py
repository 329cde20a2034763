"""Show what a checkpoint holds: tensors, shapes, dtypes, sizes, parameters, and how it is cut into chunks and files.

Works on any Hugging Face folder and any checkpoint, also of models that cannot be converted, and on GGUF files;
hardly more than headers is read. Parameters are the model's: without padding of the vocabulary, tied weights once, of
quantised weights the numbers that they stand for.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert inspect`."""
    parser.add_argument("path", metavar="PATH", type=Path, help="Hugging Face folder, checkpoint or GGUF file")
    parser.add_argument("--all", action="store_true", help="one line for every layer and expert")
    parser.add_argument(
        "--config", type=Path, metavar="FOLDER", help="where config.json is, for a checkpoint that has none"
    )


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    from converters.contents import contents
    from swift_mega.base.console import say

    for line in contents(args.path, args.all, args.config):
        say(line)
