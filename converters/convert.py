"""`swift-mega convert`: Hugging Face → Megatron and back, as a planned copy of bytes, without building a model.

Which way is decided by looking at the source. Before the first byte moves, every tensor of the source and of the
target has been accounted for, and there is a plan (`converters.plan`). The result is written under a temporary name
beside the target and renamed when it is complete; a conversion that was interrupted goes on where it stopped.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from converters import adapters, checkpoint, engine, ranks
from converters.decoding import described
from converters.export import export_plan, exported_tensors
from converters.families._common import EMBEDDING, OUTPUT
from converters.family import padded_vocab_size
from converters.fused_lora import Form
from converters.megatron_lm import megatron_lm_arguments
from converters.merge import merged
from converters.opening import open_source
from converters.plan import Plan, Target, make_plan
from converters.relayout import (
    CONTENT,
    Content,
    Keys,
    boxes_per_layer,
    check_form,
    per_layer,
    relaid,
    specs_per_layer,
    weight_of,
)
from converters.scatter import scattered
from converters.source import Source
from converters.space import Box, Space, extended, in_order_of
from converters.stores import safetensors, torch_dist, torch_zip
from converters.stores.extra_state import extra_states
from converters.stores.files import json_bytes
from converters.tensors import TensorSpec
from swift_mega.base.console import progress, say
from swift_mega.base.errors import UserError
from swift_mega.base.lock import alone_in
from swift_mega.base.writing import write_errors_are_the_users

Format = Literal["megatron", "hf", "legacy"]

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
"""`--dtype` → torch's name."""

NAMES = {
    "hf": "Hugging Face",
    "megatron": "Megatron",
    "legacy": "Megatron, a file for each rank",
    "dcp": "torch.distributed.checkpoint",
    "gguf": "GGUF",
    "peft": "PEFT adapter",
    "adapter": "Megatron adapter",
}
ADAPTERS = {"hf": NAMES["peft"], "megatron": NAMES["adapter"]}
"""What the targets are where the source is an adapter."""
DIVISIBLE_BY = 128
"""What Megatron pads the vocabulary to a multiple of by default."""
VOCABULARY = {EMBEDDING, OUTPUT}
MAX_CHUNK_BYTES = 1 << 30
"""A larger box of a tensor is stored in several chunks, cut along its rows."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What can be chosen."""

    overwrite: bool = False
    """Replace a target that is not empty."""

    max_shard_bytes: int = 5_000_000_000
    dtype: str | None = None
    """torch's name of the dtype to cast to. None: as stored."""

    vocab_divisible_by: int | None = None
    target_tp: int = 1
    """The Megatron embedding is padded to a multiple of vocab_divisible_by (None: 128) × target_tp; one that is padded
    already stays as it is where neither is given."""

    keys: Keys | None = None
    """Form of the keys of a Megatron checkpoint. None: as they are, or as megatron-core has them by default."""

    weights_only: bool = False
    """Leave out what a Megatron checkpoint holds besides the weights."""

    target_pp: int = 1
    target_vpp: int = 1
    target_ep: int = 1
    target_first_stage_layers: int | None = None
    target_last_stage_layers: int | None = None
    layer_spec: str = "transformer_engine"
    """Ranks, and the words of their state dicts, where each rank has a file of its own (`legacy`)."""

    config: Path | None = None
    """A folder with config.json and tokenizer, for a source that has none."""

    allow_unmapped: bool = False
    """Keep tensors that Megatron has no place for in a file beside the weights, instead of stopping."""

    lora: Form = "apart"
    """Whether Megatron's layer of q, k and v, and that of gate and up, has one LoRA `linear_in` or one for each."""

    adapter: Path | None = None
    """A PEFT folder that is merged into the model."""

    jobs: int = 2
    """Threads that copy."""

    node_rank: int = 0
    nodes: int = 1
    """Machines that work on this conversion, and which of them this is; they share the folder of the target."""

    dry_run: bool = False
    """Say what would be done, and do nothing."""


WAIT_S = 3600.0
POLL_S = 0.2


class Unfinished(UserError):
    """Nothing is wrong with what was done; it can be gone on with."""


@dataclass(frozen=True)
class Conversion:
    """All that is known before the first byte moves."""

    source: Source
    to: Format
    target: Target
    plan: Plan
    hf_files: Path
    """The folder that takes config.json, tokenizer and the like."""
    tensors: dict[str, TensorSpec]
    """Of the target, under its own names."""

    @property
    def title(self) -> str:
        """What becomes what, for the user to read."""
        to = ADAPTERS[self.to] if self.source.adaptable is not None else NAMES[self.to]
        return f"{NAMES[self.source.kind]} → {to}"


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
    if options.adapter is not None:
        if opened.adaptable is not None:
            raise UserError(f"{source} is an adapter itself.", "Give the base model as SRC.")
        opened = merged(opened, options.adapter, options.dtype)
    changed = opened.decodes or options.dtype or options.max_shard_bytes != Options.max_shard_bytes
    if direction == "hf" and opened.kind in ("hf", "peft") and not changed:
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
    _check_options(options, direction, opened)
    staging = _staging(source, target, options.overwrite)
    conversion = _CONVERSIONS[direction](opened, staging, options)
    _say(conversion)
    if options.dry_run:
        from converters.forecast import say_forecast

        say_forecast(conversion, target, options.jobs)
        return
    if options.node_rank == 0:
        _check_manifest(source, options.config)
    with _alone(staging, options), _renamed(staging, target) as rename:
        _staging(source, target, options.overwrite)  # another process may have written it a moment ago
        finished = _carry_out(conversion, staging, options)
        if finished:
            rename()
    say(f"wrote {target}" if finished else f"done; machine 0 finishes {target}")


ONLY_FOR: dict[str, tuple[Format, ...]] = {
    "vocab_divisible_by": ("megatron", "legacy"),
    "target_tp": ("megatron", "legacy"),
    "target_pp": ("legacy",),
    "target_vpp": ("legacy",),
    "target_ep": ("legacy",),
    "target_first_stage_layers": ("legacy",),
    "target_last_stage_layers": ("legacy",),
    "layer_spec": ("legacy",),
    "keys": ("megatron",),
    "max_shard_bytes": ("hf",),
}
"""Options that mean nothing to other targets."""


def _check_options(options: Options, direction: Format, source: Source) -> None:
    for name, formats in ONLY_FOR.items():
        if getattr(options, name) != getattr(Options, name) and direction not in formats:
            option = "--max-shard-size" if name == "max_shard_bytes" else f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} is of {' and '.join(f'--to {one}' for one in formats)}, and this writes {NAMES[direction]}.",
                f"Leave it out, or say --to {formats[0]}.",
            )
    if options.lora != Options.lora and source.kind != "peft":
        raise UserError(f"--lora is of a PEFT adapter, and {source.path} is none.", "Leave it out.")


def _check_manifest(source: Path, config: Path | None) -> None:
    """Compare the source with the manifest that lies in it, if one does.

    Raises:
        UserError: a bit has changed since.
    """
    file = source / checkpoint.MANIFEST
    if not file.is_file():
        return
    from converters.logical import differences, fingerprints, open_logical, read_manifest

    faults = differences(fingerprints(open_logical(source, config)), read_manifest(file), str(source), file.name)
    if faults:
        more = f", and {len(faults) - 1:,} more" if len(faults) > 1 else ""
        raise UserError(
            f"{source} is not what its manifest says: {faults[0]}{more}.",
            f"Copy it again from where it comes from; `swift-mega convert verify {source}` lists everything. "
            f"If it is meant to be as it is, remove {file}.",
        )


def _to_megatron(source: Source, root: Path, options: Options) -> Conversion:
    check_form(options.keys, source.rules)
    dtypes = source.dtypes_in_megatron(options.dtype)
    if source.adaptable is not None:
        return _adapter_to_megatron(source, root / checkpoint.RELEASE, options)
    rows = _rows(source, options)
    if source.stored is None or options.weights_only or options.adapter is not None:
        folder = root / checkpoint.RELEASE
        content = _weights(source, rows, dtypes, options.keys)
    else:
        folder = root / _iteration(source.path, source.stored)
        content = relaid(source.stored, source.arguments, source.rules, dtypes, options.keys, rows)
        source = replace(source, notes=[])
    return _torch_dist(source, folder, content)


def _torch_dist(source: Source, folder: Path, content: Content) -> Conversion:
    boxes = in_order_of(content.space, content.boxes)
    chunks = [part for key, offset, shape in boxes for part in _small(key, offset, shape, content.tensors[key].dtype)]
    target = torch_dist.layout(folder, content.tensors, chunks, content.objects, content.common)
    target.closing[:0] = [(folder / name, text) for name, text in content.others]
    return _beside(source, "megatron", target, folder / checkpoint.HF, content.tensors, content.space)


def _adapter_to_megatron(source: Source, folder: Path, options: Options) -> Conversion:
    """A Megatron checkpoint of nothing but an adapter."""
    assert source.adaptable is not None, "an adapter"
    space = source.space if options.keys == "per-layer" else adapters.stacked(source.space, source.adaptable)
    tensors = {key: TensorSpec(one.spec.shape, options.dtype or one.spec.dtype) for key, one in space.items()}
    boxes = [(key, (0,) * len(spec.shape), spec.shape) for key, spec in tensors.items()]
    common = _common(source, source.adaptable.sizes["padded_vocab"], options.keys)
    return _torch_dist(source, folder, Content(space, tensors, boxes, {}, common, []))


def _iteration(folder: Path, stored: torch_dist.TorchDistCheckpoint) -> str:
    """Name of the folder of a checkpoint that is written anew."""
    if folder.name == checkpoint.RELEASE:
        return folder.name
    step = stored.common().get("iteration")
    return checkpoint.iteration_name(step if isinstance(step, int) else None)


def _weights(source: Source, rows: int, dtypes: dict[str, str], keys: Keys | None) -> Content:
    """A Megatron checkpoint of nothing but weights."""
    shapes = {key: stored.spec.shape for key, stored in source.space.items()}
    shapes |= {key: (rows, *shapes[key][1:]) for key in VOCABULARY & set(shapes)}
    boxes = [(key, *box) for key, rule in source.rules.items() for box in ranks.chunks(rule, shapes[key])]
    tensors = {key: TensorSpec(shape, dtypes[key]) for key, shape in shapes.items()}
    space = source.space
    if keys == "per-layer":
        space, boxes, tensors = per_layer(space), list(boxes_per_layer(boxes)), specs_per_layer(tensors)
    return Content(space, tensors, boxes, extra_states(tensors), _common(source, rows, keys), [])


def _common(source: Source, rows: int, keys: Keys | None) -> bytes:
    common = {
        "checkpoint_version": 3.0,
        "iteration": 0,
        "args": megatron_lm_arguments(source.arguments, rows),
        "content_metadata": CONTENT[keys] if keys else {"singleton_local_shards": False},
    }
    return torch_zip.saved(common)


def _rows(source: Source, options: Options) -> int:
    """Of the embedding, with its padding."""
    stored = source.space[EMBEDDING].spec.shape[0]
    if source.view is not None or (options.vocab_divisible_by is None and options.target_tp == 1):
        return stored
    return padded_vocab_size(source.arguments.vocab_size, options.vocab_divisible_by or DIVISIBLE_BY, options.target_tp)


def _to_legacy(source: Source, root: Path, options: Options) -> Conversion:
    grid = ranks.Grid(
        options.target_tp,
        options.target_pp,
        options.target_vpp,
        options.target_ep,
        options.layer_spec,
        options.target_first_stage_layers,
        options.target_last_stage_layers,
    )
    rows, dtypes = _rows(source, options), source.dtypes_in_megatron(options.dtype)
    shapes = {key: stored.spec.shape for key, stored in source.space.items()}
    shapes |= {key: (rows, *shapes[key][1:]) for key in VOCABULARY & set(shapes)}
    tensors = {key: TensorSpec(shape, dtypes[key]) for key, shape in shapes.items()}
    folder = root / checkpoint.RELEASE
    namespace = megatron_lm_arguments(source.arguments, rows)
    vars(namespace).update(grid.arguments)
    others = {"checkpoint_version": 3.0, "iteration": 0, "args": namespace}
    target = scattered(folder, tensors, source.rules, source.arguments, grid, others)
    return _beside(source, "legacy", target, folder / checkpoint.HF, tensors, source.space)


def _beside(
    source: Source, to: Format, target: Target, hf: Path, tensors: dict[str, TensorSpec], space: Space
) -> Conversion:
    """The conversion to a Megatron checkpoint, with what an export will need in its folder `hf`."""
    if source.form is not None:
        form = json_bytes({"form": source.form})
        target = target.joined(Target({}, {}, [], [(hf / checkpoint.EXPORT, form)]))
    if source.set_aside:
        specs = {name: stored.spec for name, stored in source.set_aside.items()}
        target = target.joined(safetensors.one_file(hf / checkpoint.UNMAPPED, specs))
    padded = [key for key in space if weight_of(key) in VOCABULARY]
    rows = {key: max(space[key].spec.shape[0], tensors[key].shape[0]) for key in padded}
    read = space | {key: extended(space[key], rows[key]) for key in padded} | source.set_aside
    written = target.space | {key: extended(target.space[key], rows[key]) for key in padded}
    return Conversion(source, to, target, make_plan(read, written), hf, tensors)


def _small(key: str, offset: Box, shape: Box, dtype: str) -> Iterator[tuple[str, Box, Box]]:
    """A box cut along its rows into chunks of at most `MAX_CHUNK_BYTES`."""
    axis = next((axis for axis, size in enumerate(shape) if size > 1), 0)
    nbytes = TensorSpec(shape, dtype).nbytes
    rows = max(1, shape[axis] * MAX_CHUNK_BYTES // max(1, nbytes))
    for first in range(0, max(1, shape[axis]), rows):
        count = min(rows, shape[axis] - first)
        begin = (*offset[:axis], offset[axis] + first, *offset[axis + 1 :])
        yield key, begin, (*shape[:axis], count, *shape[axis + 1 :])


def _to_hf(source: Source, folder: Path, options: Options) -> Conversion:
    tensors = exported_tensors(source, options.dtype)
    if source.adaptable is None:
        target = safetensors.layout(folder, tensors, options.max_shard_bytes)
    else:
        target = safetensors.one_file(folder / adapters.WEIGHTS, tensors)
    plan = export_plan(source, safetensors.places(target))
    return Conversion(source, "hf", target, plan, folder, tensors)


_CONVERSIONS = {"megatron": _to_megatron, "legacy": _to_legacy, "hf": _to_hf}


def _carry_out(conversion: Conversion, root: Path, options: Options) -> bool:
    """Reserve, copy, finish; what is done already is not done again. False: another machine will finish.

    Machines agree through the files beside the result alone: the first one reserves, each has a journal, and the
    first one waits for all journals before it finishes.
    """
    portions = engine.parts(conversion.plan)
    state = root / f"{engine.JOURNAL}.plan"
    mark = engine.fingerprint(conversion.plan)
    if _says(state, mark):
        say(
            "  going on where the last attempt was interrupted"
            if options.nodes == 1
            else "  joining the other machines"
        )
    elif options.node_rank == 0:
        _start(conversion, root, state, mark)
    else:
        _await(lambda: _says(state, mark) or not root.exists(), f"machine 0 to begin this conversion in {root}")
        if not root.exists():  # so little to do that machine 0 has done it all
            return False
    mine = range(options.node_rank, len(portions), options.nodes)
    total = sum(move.nbytes for number in mine for move in portions[number])
    with progress(total, conversion.title, "B", True) as bar:
        engine.run(portions, mine, engine.journal_of(root, options.node_rank), options.jobs, bar.update)
    if options.node_rank > 0:
        return False
    everything = set(range(len(portions)))
    _await(lambda: engine.finished_portions(root) >= everything, "the other machines to do their share")
    _complete(conversion, root)
    return True


def _complete(conversion: Conversion, root: Path) -> None:
    if conversion.source.hf_files is not None:
        left = [checkpoint.CONFIG] if conversion.source.kind == "adapter" else []
        checkpoint.copy_hf_files(conversion.source.hf_files, conversion.hf_files, [*checkpoint.OURS, *left])
    for name, content in conversion.source.made.items():
        with write_errors_are_the_users(conversion.hf_files):
            conversion.hf_files.mkdir(parents=True, exist_ok=True)
            (conversion.hf_files / name).write_bytes(content)
    if conversion.source.adaptable is None:
        checkpoint.state_dtype(conversion.hf_files, conversion.tensors)
    engine.finish(conversion.target)
    if conversion.to != "hf":
        with write_errors_are_the_users(root):
            checkpoint.write_tracker(root, _step(conversion.hf_files.parent))
    for path in root.glob(f"{engine.JOURNAL}*"):
        path.unlink()


def _step(iteration: Path) -> int | None:
    return None if iteration.name == checkpoint.RELEASE else int(iteration.name.removeprefix("iter_"))


def _says(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text(encoding="ascii") == text


def _await(condition: Callable[[], bool], what: str) -> None:
    """Look at the folder that the machines share until something has happened.

    Raises:
        UserError: it has not within `WAIT_S`.
    """
    give_up = time.monotonic() + WAIT_S
    if not condition():
        say(f"  waiting for {what}, {WAIT_S / 60:,.0f} minutes at most")
    while not condition():
        if time.monotonic() > give_up:
            raise Unfinished(
                f"waited {WAIT_S:,.0f} s for {what}.",
                "Start every machine with the same SRC, DST and options, and its own --node-rank; "
                "what is done is kept, and the same commands go on from here.",
            )
        time.sleep(POLL_S)


@contextlib.contextmanager
def _alone(staging: Path, options: Options) -> Iterator[None]:
    """No other process puts the same target together, but for the other machines of this conversion."""
    with contextlib.ExitStack() as inside:
        while True:
            _make(staging)
            # Who was inside may have given the folder its final name meanwhile.
            with contextlib.suppress(FileNotFoundError):
                inside.enter_context(alone_in(staging, "DST", name=f"{LOCK}{options.node_rank}"))
                break
        yield


def _make(staging: Path) -> None:
    with write_errors_are_the_users(staging.parent):
        try:
            staging.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # below something like /proc
            raise UserError(f"{staging.parent} cannot be written: {error.strerror}.", "Choose another DST.") from None


LOCK = f"{engine.JOURNAL}.lock."
"""How the names of the locks begin; the number of the machine follows."""


def _start(conversion: Conversion, root: Path, state: Path, mark: str) -> None:
    with write_errors_are_the_users(root):
        for path in root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith(LOCK):
                path.unlink()
        for folder in {path.parent for path in conversion.target.files}:
            folder.mkdir(parents=True, exist_ok=True)
    engine.reserve(conversion.target)
    state.write_text(mark, encoding="ascii")


def _staging(source: Path, target: Path, overwrite: bool) -> Path:
    """Where the target is put together: beside it, under a name that says that it is unfinished.

    Raises:
        UserError: the target is taken.
    """
    source, target = source.resolve(), target.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(f"{target} and the source {source} lie in one another.", "Choose a target elsewhere.")
    _mend(target)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file.", "Choose a folder as target.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise UserError(f"{target} is not empty.", "Choose another target, or --overwrite to replace it.")
    return target.with_name(f".{target.name}{checkpoint.UNFINISHED}")


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _mend(target: Path) -> None:
    """An earlier conversion may have been killed between its two renames."""
    if _replaced(target).exists() and not target.exists():
        _replaced(target).rename(target)


@contextlib.contextmanager
def _renamed(staging: Path, target: Path) -> Iterator[Callable[[], None]]:
    """What the body calls at last, to give the staging folder the target's name. A UserError in the body leaves
    nothing behind; an interruption leaves what was done, for the next attempt."""
    target = target.resolve()
    with write_errors_are_the_users(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(_replaced(target), ignore_errors=True)

    def rename() -> None:
        if target.exists():
            target.rename(_replaced(target))
        staging.rename(target)
        shutil.rmtree(_replaced(target), ignore_errors=True)

    try:
        yield rename
    except Unfinished:
        raise
    except UserError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        say(f"interrupted; the same command goes on from here (or remove {staging})")
        raise


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
