"""What can be chosen of a conversion, and to which sources and targets it means something."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from converters.fused_lora import Form
from converters.relayout import Keys
from swift_mega.base.errors import UserError

Format = Literal["megatron", "hf", "legacy"]

FORMATS: tuple[Format, ...] = get_args(Format)

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


class Of(NamedTuple):
    """What an option means something to."""

    to: tuple[Format, ...] = FORMATS
    sources: tuple[str, ...] = tuple(NAMES)
    """Keys of `NAMES`."""


MODELS = ("hf", "dcp", "gguf", "megatron", "legacy")
ONLY_FOR: dict[str, Of] = {
    "vocab_divisible_by": Of(to=("megatron", "legacy")),
    "target_tp": Of(to=("megatron", "legacy")),
    "target_pp": Of(to=("legacy",)),
    "target_vpp": Of(to=("legacy",)),
    "target_ep": Of(to=("legacy",)),
    "target_first_stage_layers": Of(to=("legacy",)),
    "target_last_stage_layers": Of(to=("legacy",)),
    "layer_spec": Of(to=("legacy",)),
    "keys": Of(to=("megatron",)),
    "max_shard_bytes": Of(to=("hf",), sources=MODELS),
    "weights_only": Of(to=("megatron",), sources=("megatron",)),
    "config": Of(sources=tuple(kind for kind in NAMES if kind != "hf")),
    "allow_unmapped": Of(sources=("hf", "dcp", "gguf", "peft")),
    "lora": Of(sources=("peft",)),
    "adapter": Of(sources=MODELS),
}
"""Options that mean nothing to other targets or sources."""


def check_meaningful(options: Options, to: Format, path: Path, kind: str) -> None:
    """Whether every option that is given has a meaning here.

    Args:
        options: as they are given.
        to: what is written.
        path: of the source.
        kind: of the source; a key of `NAMES`.

    Raises:
        UserError: one has none.
    """
    for name, of in ONLY_FOR.items():
        if getattr(options, name) == getattr(Options, name):
            continue
        option = "--max-shard-size" if name == "max_shard_bytes" else f"--{name.replace('_', '-')}"
        if to not in of.to:
            raise UserError(
                f"{option} is of {' and '.join(f'--to {one}' for one in of.to)}, and this writes {NAMES[to]}.",
                f"Leave it out, or say --to {of.to[0]}.",
            )
        if kind not in of.sources:
            *most, last = (NAMES[one] for one in of.sources)
            known = f"{', '.join(most)} or {last}" if most else last
            raise UserError(f"{option} means nothing for {path}, which is {NAMES[kind]}.", f"It is of SRC in: {known}.")
