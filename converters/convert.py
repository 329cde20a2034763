"""`swift-mega convert`: Hugging Face → Megatron and back, as a planned copy of bytes, without building a model.

Which way is decided by looking at the source. Before the first byte moves, every tensor of the source and of the
target has been accounted for, and there is a plan (`converters.plan`). The result is written under a temporary name
beside the target and renamed when it is complete; a conversion that was interrupted goes on where it stopped.
"""

from pathlib import Path

from converters import checkpoint
from converters.carrying import alone, carry_out, is_needed, share
from converters.decoding import described
from converters.families._common import EMBEDDING
from converters.finished import is_finished
from converters.merge import merged
from converters.opening import open_source
from converters.options import DIVISIBLE_BY, NAMES, Format, Options, check_meaningful
from converters.source import Source
from converters.staging import Vanished, check_free, is_free, renamed, staging_of
from converters.targets import CONVERSIONS, Conversion
from swift_mega.base.console import say
from swift_mega.base.errors import UserError


def convert(source: Path, target: Path, *, to: Format | None = None, options: Options | None = None) -> None:
    """Convert a Hugging Face folder into a Megatron checkpoint, or the other way round.

    Args:
        source: a folder of either kind.
        target: a folder that is made; it must be empty or absent unless `options.overwrite`.
        to: what the result is to be, if that is to be checked against the source.

    Raises:
        UserError: whatever a user can mend; nothing is left at the target then.
    """
    source, target, options = Path(source), Path(target), options or Options()
    opened, direction = _opened(source, to, options)
    changed = opened if options.adapter is None else merged(opened, options.adapter, options.dtype)
    staging = staging_of(source, target)
    if options.node_rank == 0:
        check_free(target, options.overwrite)
    conversion = CONVERSIONS[direction](changed, staging, options)
    _say(conversion)
    if options.dry_run:
        from converters.forecast import say_forecast

        say_forecast(conversion, staging, options.jobs)
        return
    if options.node_rank > 0 and _comes_late(conversion, staging, target, options):
        return
    if options.node_rank == 0:
        _check_manifest(source, opened, options)
    with alone(staging, options), renamed(staging, target, options.nodes > 1, options.node_rank == 0) as rename:
        check_free(target, options.overwrite)  # another process may have written it a moment ago
        try:
            finished = carry_out(conversion, staging, options)
        except Vanished:  # machine 0 may have done it all
            if options.node_rank == 0 or not _is_there(conversion, staging, target, options):
                raise
            finished = False
        if finished:
            rename()
    say(f"wrote {target}" if finished else f"done; machine 0 finishes {target}")


def _opened(source: Path, to: Format | None, options: Options) -> tuple[Source, Format]:
    """The source, and what it becomes."""
    opened = open_source(
        source,
        options.vocab_divisible_by or DIVISIBLE_BY,
        options.target_tp,
        options.allow_unmapped,
        options.config,
        options.lora,
    )
    other: Format = "megatron" if opened.view is not None or opened.kind == "peft" else "hf"
    direction = to or other
    check_meaningful(options, direction, source, opened.kind)
    change = options.dtype or options.adapter or options.max_shard_bytes != Options.max_shard_bytes
    if direction == "hf" and opened.kind in ("hf", "peft") and not opened.decodes and not change:
        raise UserError(
            f"{source} is a {NAMES[opened.kind]} folder of plain weights already.",
            f"Say --to {other}, or what is to change: --dtype, --max-shard-size, --adapter. `swift-mega convert push` "
            "uploads a folder as it is.",
        )
    if opened.adaptable is not None and direction != other:
        raise UserError(
            f"{source} is a {NAMES[opened.kind]}; it cannot become --to {direction}.",
            f"Leave out --to, or say --to {other}, which is the other kind of adapter.",
        )
    return opened, direction


def _is_there(conversion: Conversion, staging: Path, target: Path, options: Options) -> bool:
    """Whether the target is what this machine's share of the conversion would make of it."""
    return is_finished(conversion.target, staging, target, share(conversion.plan, options))


def _comes_late(conversion: Conversion, staging: Path, target: Path, options: Options) -> bool:
    """Whether the other machines have finished this very conversion.

    Raises:
        UserError: the target is something else.
    """
    if is_free(target):
        return False
    if not staging.exists() and _is_there(conversion, staging, target, options):
        if options.overwrite and is_needed(conversion.plan, options):  # machine 0 may be about to do it anew
            say(f"{target} is this conversion already; if machine 0 has ended, nothing is left to do for this one")
            return False
        say(f"{target} is this conversion already, and complete: the other machines had no need of this one")
        return True
    if not options.overwrite:
        raise UserError(
            f"{target} is not empty, and what it holds is not what this conversion writes.",
            "Have the other machines finished it with other options, or from a source that has changed since? "
            "Choose another target, or --overwrite to replace it.",
        )
    return False


def _check_manifest(source: Path, opened: Source, options: Options) -> None:
    """Compare the source with the manifest that lies in it, if one does.

    Raises:
        UserError: a bit has changed since.
    """
    file = source / checkpoint.MANIFEST
    if not file.is_file():
        return
    from converters.logical import differences, fingerprints, logical, read_manifest

    if options.lora != Options.lora:  # what was opened is no longer as it is stored
        opened = open_source(source, config=options.config)
    faults = differences(fingerprints(logical(opened)), read_manifest(file), str(source), file.name)
    if faults:
        more = f", and {len(faults) - 1:,} more" if len(faults) > 1 else ""
        raise UserError(
            f"{source} is not what its manifest says: {faults[0]}{more}.",
            f"Copy it again from where it comes from; `swift-mega convert verify {source}` lists everything. "
            f"If it is meant to be as it is, remove {file}.",
        )


def _say(conversion: Conversion) -> None:
    source = conversion.source
    arrow = f"{source.path}: {conversion.title}, {source.family.name}"
    rows = conversion.tensors[EMBEDDING].shape[0] if EMBEDDING in conversion.tensors else 0
    padded = f", vocabulary {source.arguments.vocab_size:,} padded to {rows:,}"
    say(arrow + (padded if rows else ""))
    for note in source.notes:
        say(f"  {note}")
    for (stored, wanted), count in conversion.plan.decodes.items():
        say(f"  {count:,} elements are {described(stored, wanted)}")
    for (stored, wanted), count in conversion.plan.casts.items():
        say(f"  {count:,} elements are cast from {stored} to {wanted}" + (LOSSY if _loses(stored, wanted) else ""))


LOSSY = ", which loses bits"


def _loses(stored: str, wanted: str) -> bool:
    return (stored, wanted) not in {("bfloat16", "float32"), ("float16", "float32")} and wanted != "float64"
