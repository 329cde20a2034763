"""What a conversion reads: a model of any format, with its tensors under canonical keys."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from converters import checkpoint
from converters.accounting import hf_shapes, mismatch, without_a_place
from converters.config_table import Config, MegatronArguments
from converters.families._common import EMBEDDING
from converters.family import Family, family_of, padded_vocab_size, sizes
from converters.gather import gathered
from converters.hf import canonical
from converters.key_forms import canonical_part, canonical_space
from converters.lora import Adaptable
from converters.rules import Rule
from converters.space import Space, check_tiling
from converters.stores import dcp, legacy, quantised, safetensors, torch_dist
from converters.stores.anywhere import Anywhere
from converters.stores.files import json_bytes, read_json
from converters.stores.gguf_file import SUFFIX, GgufFile
from converters.stores.safetensors import SafetensorsFolder
from converters.view import MegatronView
from swift_mega.base.errors import UserError

NOT_WEIGHTS = ("optimizer.", "chained_", "rng_state", "rerun_state_machine_state", "opt_param_scheduler")
"""How the keys begin that a training checkpoint holds besides the model."""


@dataclass(frozen=True)
class Source:
    """An opened model."""

    path: Path
    """The folder with the weights; of a Megatron checkpoint the iteration's."""
    kind: str
    """`hf`, `dcp`, `gguf`, `megatron` or `legacy`; of an adapter `peft` or `adapter`."""
    config: Config
    family: Family
    arguments: MegatronArguments
    space: Space
    """Canonical key → where it lies."""
    hf_files: Path | None
    """The folder with config.json and tokenizer. None: there is none, but what `made` holds."""
    notes: list[str]
    """What is left out, and why; for the user to read."""
    set_aside: Space = field(default_factory=dict)
    """Hugging Face name → where a tensor lies that Megatron has no place for."""
    form: str | None = None
    """Which of the forms its family knows the Hugging Face folder has, or had. None: the first, or the only one."""
    view: MegatronView | None = None
    """Of weights under Hugging Face names."""
    made: dict[str, bytes] = field(default_factory=dict)
    """Name → content of files beside the weights that nothing is copied to, such as a config.json made of metadata."""
    tokenizer: Path | None = None
    """The GGUF file that has the tokenizer, where no folder has one."""
    stored: torch_dist.TorchDistCheckpoint | None = None
    """All that a Megatron checkpoint holds, under its own keys."""
    adaptable: Adaptable | None = None
    """Of an adapter: the layers of its base model."""

    @property
    def decodes(self) -> bool:
        """Whether the files have numbers in another form than as they are."""
        return any(one.encoding is not None for stored in self.space.values() for one in stored.placements)

    def dtypes(self, dtype: str | None) -> dict[str, str]:
        """Canonical key → dtype in a target: as stored, or `dtype` where a rule does not forbid it."""
        fixed = {key for key, rule in self.rules.items() if rule.keeps_dtype}
        return {
            key: stored.spec.dtype if dtype is None or key in fixed else dtype for key, stored in self.space.items()
        }

    def dtypes_in_megatron(self, dtype: str | None) -> dict[str, str]:
        """The same where a tensor is made of several.

        Raises:
            UserError: of these some have another dtype, and none is asked for.
        """
        mixed = {} if self.view is None or dtype is not None else self.view.mixed
        for key, own in mixed.items():
            found = ", ".join(f"`{name}` is {stored}" for stored, name in sorted(own.items()))
            more = f"; and {len(mixed) - 1:,} more" if len(mixed) > 1 else ""
            raise UserError(
                f"{self.path}: `{key}` is one tensor in Megatron, made of tensors of different dtypes: {found}{more}.",
                "Say which they are to have: --dtype fp32, which loses nothing, or --dtype bf16.",
            )
        return self.dtypes(dtype)

    @property
    def rules(self) -> dict[str, Rule]:
        """Canonical key → the rule that makes it."""
        arguments = self.family.as_stored(self.arguments, self.space)
        return {rule.megatron: rule for rule in self.family.rules_for(arguments, self.form)}


def open_model(
    path: Path,
    vocab_divisible_by: int = 128,
    target_tp: int = 1,
    allow_unmapped: bool = True,
    config: Path | None = None,
) -> Source:
    """Look at what lies in a folder and account for every tensor of it.

    Args:
        path: a checkpoint of any format.
        vocab_divisible_by: the embedding of a Hugging Face folder is padded to a multiple of it and of `target_tp`.
        target_tp: tensor-parallel size.
        allow_unmapped: set tensors aside that Megatron has no place for.
        config: a folder with config.json and tokenizer, where the checkpoint has none.

    Raises:
        UserError: nothing that is known, damaged, or tensors that are missing or have no place.
    """
    if path.suffix == SUFFIX and path.is_file():
        return _open_gguf(path, config, vocab_divisible_by, target_tp, allow_unmapped)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise UserError(f"{path} {what}.", "Give a Hugging Face folder, a Megatron checkpoint or a GGUF file.")
    if folder := legacy.find(path):
        return _open_legacy(folder, config)
    if checkpoint.is_megatron(path):
        return _open_megatron(checkpoint.latest(path), config)
    if dcp.is_dcp(path):
        return _open_dcp(path, config, vocab_divisible_by, target_tp, allow_unmapped)
    return _open_hf(path, vocab_divisible_by, target_tp, allow_unmapped)


def _open_hf(path: Path, vocab_divisible_by: int, target_tp: int, allow_unmapped: bool) -> Source:
    config = checkpoint.read_config(path)
    padded = padded_vocab_size(understood(config, path)[1].vocab_size, vocab_divisible_by, target_tp)
    return _open_view("hf", path, path, config, quantised.open_weights(path, config), padded, allow_unmapped)


def understood(config: Config, folder: Path) -> tuple[Family, MegatronArguments]:
    """The family of a config.json, and what it says in Megatron's words.

    Args:
        config: its content.
        folder: where it lies, for messages.

    Raises:
        UserError: an unknown architecture, or a value that megatron-core cannot express.
    """
    try:
        family = family_of(config)
        return family, family.megatron_arguments(config)
    except UserError as error:
        where = f"{folder}/" if error.what.startswith(checkpoint.CONFIG) else f"{folder}: "
        raise UserError(where + error.what, error.fix) from None


def _open_view(
    kind: str, path: Path, hf: Path | None, config: Config, store: SafetensorsFolder, padded: int, allow_unmapped: bool
) -> Source:
    """Weights under Hugging Face names, whatever files they lie in."""
    family, arguments = understood(config, hf or path)
    set_aside: Space = {}
    if allow_unmapped:
        aside = without_a_place(family, arguments, store.tensors)
        set_aside = {name: stored for name, stored in store.space().items() if name in aside}
        store = store.without(aside)
    view = MegatronView(family, config, store, padded)
    form = family.form_of(store.tensors, view.arguments)
    notes = view.notes + kept_beside(set_aside)
    return Source(path, kind, config, family, view.arguments, canonical(view), hf, notes, set_aside, form, view=view)


def _open_dcp(
    folder: Path, given: Path | None, vocab_divisible_by: int, target_tp: int, allow_unmapped: bool
) -> Source:
    hf = _config_folder(folder, given)
    config = checkpoint.read_config(hf)
    family, arguments = understood(config, hf)
    named = sizes(arguments, arguments.vocab_size)
    rules = [rule for form in family.forms or (None,) for rule in family.rules_for(arguments, form)]
    embedding = next(rule.sources[0].first_name for rule in rules if rule.megatron == EMBEDDING)
    space, others = dcp.open_weights(folder, hf_shapes(rules, named), embedding)
    padded = padded_vocab_size(arguments.vocab_size, vocab_divisible_by, target_tp)
    source = _open_view("dcp", folder, hf, config, Anywhere(folder, space), padded, allow_unmapped)
    return replace(source, notes=source.notes + left_out(others))


def _open_gguf(path: Path, given: Path | None, vocab_divisible_by: int, target_tp: int, allow_unmapped: bool) -> Source:
    file = GgufFile(path)
    config = checkpoint.read_config(given) if given else file.config()
    family, arguments = understood(config, given or path)
    wanted = hf_shapes(family.rules_for(arguments), sizes(arguments, arguments.vocab_size))
    padded = padded_vocab_size(arguments.vocab_size, vocab_divisible_by, target_tp)
    store = Anywhere(path, file.space(wanted, config))
    source = _open_view("gguf", path, given, config, store, padded, allow_unmapped)
    if given:
        return source
    return replace(
        source,
        made={"config.json": json_bytes(config, sort_keys=False), **file.chat_template()},
        notes=[*source.notes, f"config.json is made of what the file says{'' if file.has_tokenizer else NO_TOKENIZER}"],
        tokenizer=file.path if file.has_tokenizer else None,
    )


NO_TOKENIZER = ", which has no tokenizer; --config FOLDER takes one along"


def _config_folder(folder: Path, given: Path | None) -> Path:
    """Where config.json is, of a checkpoint that does not say itself which model it is of."""
    hf = given or next((own for own in (folder / checkpoint.HF, folder) if (own / "config.json").is_file()), None)
    if hf is None or not (hf / "config.json").is_file():
        raise UserError(
            f"{hf or folder / checkpoint.HF} has no config.json, and nothing else there says which model this is.",
            "Give the folder that has it with --config FOLDER.",
        )
    return hf


def _open_megatron(folder: Path, given: Path | None) -> Source:
    config = checkpoint.read_config(given or folder)
    family, arguments = understood(config, given or folder / checkpoint.HF)
    stored = torch_dist.open_checkpoint(folder)
    arguments = family.as_stored(arguments, stored.tensors)
    wanted = {rule.megatron for rule in family.rules_for(arguments)}
    weights = [key for key in stored.tensors if not key.startswith(NOT_WEIGHTS)]
    parts = {key: part for key in weights if (part := canonical_part(key, wanted))}
    found = {part.key for part in parts.values()} | (set(weights) - set(parts))
    _check_complete(folder, family, wanted, found)
    space = canonical_space({key: stored.stored(key) for key in parts}, parts)
    check_tiled(space, folder / torch_dist.METADATA)
    stored.common()  # whether it can be read
    notes = left_out([*stored.objects, *(key for key in stored.tensors if key not in weights)])
    hf = given or folder / checkpoint.HF
    beside = unmapped(hf), form_of_export(hf)
    return Source(folder, "megatron", config, family, arguments, space, hf, notes, *beside, stored=stored)


def _open_legacy(folder: Path, given: Path | None) -> Source:
    hf = _config_folder(folder, given)
    config = checkpoint.read_config(hf)
    family, arguments = understood(config, hf)
    files = legacy.open_ranks(folder)
    names = {name for file in files for chunk in file.chunks for name in chunk}
    arguments = family.as_stored(arguments, names)
    rules = {rule.megatron: rule for rule in family.rules_for(arguments)}
    found = gathered(files, rules, arguments)
    _check_complete(folder, family, set(rules), set(found.space) | found.unknown)
    check_tiled(found.space, folder)
    others = {name for file in files for name in file.others} - legacy.ABOUT
    notes = left_out(found.left_out) + [f"left out `{name}`: not weights" for name in sorted(others)]
    return Source(folder, "legacy", config, family, arguments, found.space, hf, notes, unmapped(hf), form_of_export(hf))


def _check_complete(folder: Path, family: Family, wanted: set[str], found: set[str]) -> None:
    if EMBEDDING not in found:
        raise UserError(
            f"{folder} has no `{EMBEDDING}`; it holds: {', '.join(sorted(found)[:5]) or 'no tensors'}.",
            "Give a checkpoint of a whole GPT model.",
        )
    if fault := mismatch(wanted, found):
        raise UserError(
            f"{folder} does not hold the tensors of {family.name} with its hf/config.json: {fault}.",
            "The checkpoint is of another model than hf/ says, or of a layout that cannot be exported.",
        )


def check_tiled(space: Space, file: Path) -> None:
    """Raises:
    UserError: the chunks of a tensor leave gaps, overlap or lie outside.
    """
    for key, tensor in space.items():
        try:
            check_tiling(key, tensor.spec, [(placement.offset, placement.shape) for placement in tensor.placements])
        except ValueError as error:
            raise torch_dist.damaged(file, str(error)) from None


def unmapped(hf: Path) -> Space:
    """What Megatron has no place for and was kept beside, by its Hugging Face name."""
    side = hf / checkpoint.UNMAPPED
    places = safetensors.read_header(side) if side.is_file() else {}
    return {name: place.stored() for name, place in places.items()}


def form_of_export(hf: Path) -> str | None:
    """The form in which an export has the tensors, where the family knows several."""
    file = hf / checkpoint.EXPORT
    form = read_json(file).get("form") if file.is_file() else None
    return None if form is None else str(form)


def kept_beside(names: Iterable[str]) -> list[str]:
    """One line for each tensor that Megatron has no place for."""
    return [f"kept beside the weights, as Megatron has no place for it: `{name}`" for name in names]


def left_out(keys: Iterable[str]) -> list[str]:
    """One line for each kind of entry that is not a weight."""
    kinds = Counter("_extra_state" if "._extra_state" in key else re.split("[./]", key)[0] for key in keys)
    return [f"left out {count:,} entries of `{kind}`: not weights" for kind, count in sorted(kinds.items())]
