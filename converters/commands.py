"""Turn a Hugging Face model into a Megatron checkpoint, or back; the source decides which way.

No GPU and no torch are needed: a conversion is a planned copy of bytes. Nothing appears at DST before it is
complete, every tensor is accounted for, and there and back again is byte-identical. What was interrupted goes on
where it stopped when the same command is given again.
"""

# Read by --help and by the launcher, so without torch until it runs.

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from converters.command_push import PRIVATE, REPOSITORY
from swift_mega.base.console import say
from swift_mega.base.errors import UserError

if TYPE_CHECKING:
    from swift_mega.base.upload import Repository

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `convert`."""
    parser.add_argument("source", metavar="SRC", help="Hugging Face id or folder, checkpoint, or GGUF file")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to write; must be empty or absent")
    parser.add_argument(
        "--to",
        choices=["megatron", "hf", "legacy"],
        help="what DST will be: a torch_dist checkpoint, a Hugging Face folder (of a quantised one its plain weights), "
        "or a Megatron checkpoint with a file for each rank (default: megatron from Hugging Face, hf from Megatron)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST when the conversion has succeeded")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], help="cast the weights (default: as they are stored)")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a safetensors file (default: 5GB)")
    parser.add_argument(
        "--vocab-divisible-by",
        type=int,
        metavar="N",
        help="pad the Megatron embedding to a multiple of N times --target-tp (default: 128; what is padded already "
        "stays as it is where neither is given)",
    )
    parser.add_argument(
        "--target-tp", type=int, default=1, metavar="N", help="tensor parallel size to pad or write for (default: 1)"
    )
    for name, what in (
        ("pp", "pipeline parallel size"),
        ("vpp", "virtual stages of each pipeline stage"),
        ("ep", "expert parallel size"),
    ):
        parser.add_argument(
            f"--target-{name}", type=int, default=1, metavar="N", help=f"of --to legacy: {what} (default: 1)"
        )
    for end in ("first", "last"):
        parser.add_argument(
            f"--target-{end}-stage-layers",
            type=int,
            metavar="N",
            help=f"of --to legacy: layers of the {end} pipeline stage (default: as many as the others)",
        )
    parser.add_argument(
        "--layer-spec",
        choices=["transformer_engine", "local"],
        default="transformer_engine",
        help="of --to legacy: layers in whose words the files are written (default: transformer_engine)",
    )
    parser.add_argument(
        "--keys",
        choices=["stacked", "per-layer"],
        help="of --to megatron: all equal layers in one tensor, or each its own (default: as they are)",
    )
    parser.add_argument(
        "--weights-only", action="store_true", help="leave out optimizer, random states and step of a checkpoint"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FOLDER",
        help="where config.json and tokenizer are, for a source without them; of an adapter its base model's",
    )
    parser.add_argument(
        "--allow-unmapped",
        action="store_true",
        help="keep tensors that Megatron has no place for in a file beside the weights; the way back restores them",
    )
    parser.add_argument(
        "--adapter", type=Path, metavar="FOLDER", help="of PEFT: merge it into the model SRC, which is only read"
    )
    parser.add_argument(
        "--lora",
        choices=["apart", "fused"],
        default="apart",
        help="of a PEFT adapter to Megatron: q, k and v, gate and up have an A each, or share one (default: apart)",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="threads that copy (default: 2)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines that share the work (default: 1)")
    parser.add_argument(
        "--node-rank",
        type=int,
        metavar="I",
        help="which of them this is, from 0; all must see DST, "
        "and SRC, shared or at the same path as a copy that has kept its times (cp -p)",
    )
    parser.add_argument("--push", metavar="REPO", help=f"upload DST when it is complete: to {REPOSITORY}")
    parser.add_argument("--private", action="store_true", help=f"of --push: {PRIVATE}")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and what it would cost")
    parser.add_argument("--revision", help="branch, tag or commit of SRC on the hub")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    # Read by numpy's BLAS when it is imported. --jobs are the threads; more of its own would only wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from converters.convert import convert
    from converters.options import DTYPES, Options
    from swift_mega.base.hub import resolve_model

    stages = ("target_first_stage_layers", "target_last_stage_layers")
    for name in ("vocab_divisible_by", "target_tp", "target_pp", "target_vpp", "target_ep", *stages, "jobs", "nodes"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')} is {number}.", "Give a number of at least 1.")
    if args.node_rank is None and args.nodes > 1:
        raise UserError(
            f"--nodes is {args.nodes}, and which of them this is is not said.",
            f"Give every machine its own --node-rank, 0 to {args.nodes - 1}.",
        )
    args.node_rank = args.node_rank or 0
    if not 0 <= args.node_rank < args.nodes:
        raise UserError(f"--node-rank is {args.node_rank} of --nodes {args.nodes}.", f"Give 0 to {args.nodes - 1}.")
    options = Options(
        overwrite=args.overwrite,
        max_shard_bytes=parse_size(args.max_shard_size),
        dtype=DTYPES[args.dtype] if args.dtype else None,
        vocab_divisible_by=args.vocab_divisible_by,
        target_tp=args.target_tp,
        target_pp=args.target_pp,
        target_vpp=args.target_vpp,
        target_ep=args.target_ep,
        target_first_stage_layers=args.target_first_stage_layers,
        target_last_stage_layers=args.target_last_stage_layers,
        layer_spec=args.layer_spec,
        keys=args.keys,
        weights_only=args.weights_only,
        config=args.config,
        allow_unmapped=args.allow_unmapped,
        adapter=args.adapter,
        lora=args.lora,
        jobs=args.jobs,
        nodes=args.nodes,
        node_rank=args.node_rank,
        dry_run=args.dry_run,
    )
    destination = _destination(args)
    file = Path(args.source).expanduser()
    source = file if file.is_file() else resolve_model(args.source, args.revision)
    convert(source, args.target, to="hf" if args.push else args.to, options=options)
    if destination and not args.dry_run:
        _push(args, destination)


def _destination(args: argparse.Namespace) -> "Repository | None":
    """Where node 0 uploads to, asked whether it may, before anything is converted."""
    from swift_mega.base.upload import repository

    if args.private and not args.push:
        raise UserError("--private is of --push, which is not given.", "Give --push REPO as well, or neither.")
    if args.push and args.to not in (None, "hf"):
        raise UserError(f"--push is of a Hugging Face folder, and --to is {args.to}.", "Leave out one of the two.")
    if not args.push or args.node_rank > 0:
        return None
    destination = repository(args.push, args.private)
    destination.check()
    return destination


def _push(args: argparse.Namespace, destination: "Repository") -> None:
    again = shlex.join(["swift-mega", "convert", "push", str(args.target), args.push, *["--private"] * args.private])
    try:
        say(f"uploaded {args.target} to {destination.send(args.target)}")
    except UserError as error:
        done = f"{args.target} is complete, only the upload is not."
        raise UserError(f"{error.what} {done}", f"{error.fix} Then `{again}`.") from None
    except KeyboardInterrupt:
        say(f"interrupted; {args.target} is complete, and `{again}` goes on with the upload")
        raise


def parse_size(text: str) -> int:
    """Bytes in `5GB`, `500MB` or a plain number; decimal units, as transformers reads them."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?B)?", text.strip().upper())
    size = int(float(found[1]) * UNITS[found[2] or "B"]) if found else 0
    if size < 1:
        raise UserError(f"--max-shard-size is {text!r}.", f"Give a number with one of {', '.join(UNITS)}, such as 5GB.")
    return size
