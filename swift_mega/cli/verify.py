"""Check that two checkpoints are the same model, byte for byte, whatever format and layout each is in.

A and B are Hugging Face folders, Megatron checkpoints or manifests (`swift-mega convert manifest`); without B,
A is checked against the manifest that lies in it. No model is built, except with --logits, by which Megatron with A
and transformers with B compute the logits of a text. The exit code is 1 if anything differs.
"""

import argparse
from pathlib import Path

from converters import command_verify

MOST = 1e-3
"""Largest difference of a logit in fp32 that is taken for rounding."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert verify`."""
    command_verify.add_arguments(parser)
    parser.add_argument(
        "--logits", metavar="TEXT", help=f"also compare the logits of TEXT, which may differ by {MOST:g}; needs torch"
    )


def run(args: argparse.Namespace) -> int:
    """Do what the options say."""
    from swift_mega.base.console import say
    from swift_mega.base.errors import UserError

    if args.logits is not None and args.other is None:
        raise UserError("--logits compares A with B, and there is no B.", "Give a Hugging Face folder as B.")
    if args.logits is not None:
        _check_text(args.one, args.logits)
    fault = command_verify.run(args)
    if args.logits is None:
        return fault
    from swift_mega import compat

    compat.install()
    from swift_mega.methods.logits import compare_logits

    found = compare_logits(args.one, args.other, args.logits)
    say(
        f"logits of {found.tokens} tokens, Megatron in {args.one} and transformers in {args.other}: "
        f"differ by at most {found.largest:.1e}, the likeliest token is the same {found.same_token} times"
    )
    return 1 if fault or not found.largest <= MOST else 0


def _check_text(folder: Path, text: str) -> None:
    """Before anything is read: transformers takes a folder without tokenizer for one that knows no words."""
    from converters.checkpoint import hf_folder
    from swift_mega.base.errors import UserError
    from swift_mega.base.hub import has_tokenizer

    if not text.strip():
        raise UserError("--logits was given an empty text.", "Give a sentence or two.")
    if not has_tokenizer(hf := hf_folder(folder)):
        raise UserError(f"{hf} has no tokenizer, which --logits needs.", "Copy the model's tokenizer files there.")
