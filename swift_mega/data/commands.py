"""Build Megatron's token files from text, and look into them.

swift-mega data build books.jsonl 'web/*.parquet' --tokenizer MODEL --output data/books
swift-mega data inspect data/books
"""

import argparse
import typing
from typing import Any

from swift_mega.base.readers import OnBadRow, TxtDocuments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of `swift-mega data`."""
    commands = parser.add_subparsers(dest="action", metavar="build|inspect", required=True)
    _add_build(commands)
    _add_inspect(commands)


def _add_build(commands: Any) -> None:
    build = commands.add_parser(
        "build",
        help="turn texts into .bin/.idx",
        description="Tokenize texts into PREFIX.bin and PREFIX.idx, as Megatron reads them; PREFIX.json says how.\n"
        "The bytes depend on texts, tokenizer and what `what is written` says, never on workers or engine.",
    )
    build.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help=".jsonl, .json, .csv, .tsv, .txt (these also .gz, .zst), .parquet or .arrow, a folder or a quoted glob "
        "of them, `org/name` on Hugging Face, or `ms::org/name` on ModelScope",
    )
    build.add_argument("--tokenizer", required=True, metavar="FOLDER", help="folder or id of a Hugging Face tokenizer")
    build.add_argument("--output", required=True, metavar="PREFIX", help="path of the files, without .bin")
    build.add_argument("--overwrite", action="store_true", help="replace what another build left at PREFIX")

    what = build.add_argument_group("what is written")
    what.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    what.add_argument(
        "--append-eod",
        "--eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end every document with the end-of-document token (default: yes)",
    )
    what.add_argument("--eod-token", metavar="TOKEN", help="that token (default: the tokenizer's end of sequence)")
    what.add_argument(
        "--special-tokens",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="put around a text what the tokenizer puts around it (BOS …), if anything (default: yes)",
    )
    what.add_argument(
        "--txt-documents",
        choices=typing.get_args(TxtDocuments),
        default="file",
        help="what a document is in a .txt file (default: file)",
    )
    what.add_argument(
        "--on-bad-row",
        choices=typing.get_args(OnBadRow),
        default="raise",
        help="a row without a text: stop, or leave it out and report it (default: raise)",
    )
    what.add_argument("--subset", metavar="NAME", help="configuration of a data set on a hub")
    what.add_argument("--split", default="train", help="split of a data set on a hub (default: train)")

    how = build.add_argument_group("how")
    how.add_argument("--workers", type=int, metavar="N", help="processes that tokenize (default: one per core)")
    how.add_argument(
        "--tokenizer-engine",
        choices=("auto", "tokenizers", "gigatoken"),
        default="auto",
        help="auto (default): gigatoken where it is installed and gives the same ids on a sample, else tokenizers",
    )
    _add_trust(how)


def _add_trust(parser: Any) -> None:
    text = "run Python code that comes with the tokenizer"
    parser.add_argument("--trust-remote-code", action="store_true", help=text)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="show what .bin/.idx hold",
        description="Counts, a histogram of document lengths, and the beginning of a document as text.",
    )
    inspect.add_argument("prefix", metavar="PREFIX", help="path of the files, without .bin")
    inspect.add_argument("--tokenizer", metavar="FOLDER", help="to show text (default: the one in the manifest)")
    inspect.add_argument("--document", type=int, default=0, metavar="N", help="document to show (default: 0)")
    _add_trust(inspect)


def run(args: argparse.Namespace) -> None:
    """Do what `args` say.

    Raises:
        UserError: see `build` and `summary`.
    """
    if args.action == "inspect":
        from swift_mega.data.summary import summarize

        summarize(args.prefix, args.tokenizer, args.document, trust_remote_code=args.trust_remote_code)
        return
    from swift_mega.data.build import BuildOptions, build

    build(
        args.inputs,
        args.tokenizer,
        args.output,
        BuildOptions(
            text_key=args.text_key,
            append_eod=args.append_eod,
            eod_token=args.eod_token,
            special_tokens=args.special_tokens,
            txt_documents=args.txt_documents,
            on_bad_row=args.on_bad_row,
            subset=args.subset,
            split=args.split,
        ),
        workers=args.workers,
        engine=args.tokenizer_engine,
        overwrite=args.overwrite,
        trust_remote_code=args.trust_remote_code,
    )
