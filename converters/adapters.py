"""Adapters as models of their own: PEFT's folder of LoRA factors, and a Megatron checkpoint with nothing else in it.

Neither needs the weights of the base model, only its config.json: that says how the rows of q, k and v are ordered.
A Megatron checkpoint of an adapter has PEFT's adapter_config.json in its `hf/`, beside the base's config.json.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from converters import checkpoint
from converters.accounting import some
from converters.config_table import Config
from converters.expert_lora import as_saved, told_apart
from converters.families._common import EMBEDDING, OUTPUT
from converters.families._moe import FUSED
from converters.family import Family, padded_vocab_size
from converters.fused_lora import Form, fuse
from converters.key_forms import LAYER, Part, canonical_space
from converters.lora import BASE, LINEAR_IN, LINEAR_OUT, Adaptable, Factor, Members, key_of
from converters.lora_config import CONFIG, LoraConfig
from converters.relayout import per_layer
from converters.source import (
    NOT_WEIGHTS,
    Source,
    check_tiled,
    form_of_export,
    kept_beside,
    left_out,
    understood,
    unmapped,
)
from converters.space import Box, Space, Stored
from converters.stores import legacy, safetensors, torch_dist
from converters.stores.files import json_bytes
from converters.tensors import TensorSpec
from swift_mega.base.errors import UserError
from swift_mega.base.hub import resolve_model

WEIGHTS = "adapter_model.safetensors"
ADAPTER = ".adapter."
"""In the key of every Megatron tensor that is a factor."""


def is_peft(path: Path) -> bool:
    """Whether `path` is a folder that PEFT has saved."""
    return (path / CONFIG).is_file()


def is_megatron_adapter(path: Path, config: Path | None) -> bool:
    """Whether `path` is a Megatron checkpoint of an adapter; `config` is a folder that may say so, too."""
    if not checkpoint.is_megatron(path) or legacy.find(path):
        return False
    return ((config or checkpoint.latest(path) / checkpoint.HF) / CONFIG).is_file()


def open_peft(
    path: Path, config: Path | None, vocab_divisible_by: int, target_tp: int, allow_unmapped: bool, lora: Form
) -> Source:
    """A PEFT folder.

    Args:
        path: the folder.
        config: a folder with the base model's config.json. None: of the model that the adapter names.
        vocab_divisible_by: what is trained of embedding and output layer is padded to a multiple of it.
        target_tp: and of this.
        allow_unmapped: set tensors aside that Megatron has no place for.
        lora: whether Megatron's layer of q, k and v, and that of gate and up, has one `linear_in` or one for each.

    Raises:
        UserError: no LoRA of the base's own weights, damaged, of another model, or with tensors that Megatron has no
            place for.
    """
    said = LoraConfig(path)
    said.check_base_stays()
    base, folder = _base_config(path, said, config)
    family, arguments = understood(base, folder)
    padded = padded_vocab_size(arguments.vocab_size, vocab_divisible_by, target_tp)
    tensors, form = open_tensors(path, said, family)
    adaptable = Adaptable(family, arguments, padded, form)
    set_aside = {name: stored for name, stored in tensors.items() if not adaptable.parse(name)}
    if set_aside and not allow_unmapped:
        raise UserError(
            f"{path} holds what Megatron has no place for: {some(set(set_aside))}.",
            "LoRA of linear layers and of experts converts, and whole weights (modules_to_save); not LoRA of "
            "embeddings, nor of layers that Megatron has in parts (in_proj of Mamba and of gated delta nets). "
            f"`swift-mega convert BASE DST --adapter {path}` merges these, too; --allow-unmapped keeps them in a file "
            "beside, and the way back restores them.",
        )
    placed = {name: stored for name, stored in tensors.items() if name not in set_aside}
    _check_shapes(path, placed, adaptable)
    _check_factors(path, {name: stored.spec.shape for name, stored in placed.items()}, adaptable, said)
    members = _members(path, adaptable, placed)
    made = {"config.json": json_bytes(base, sort_keys=False)}
    notes = kept_beside(set_aside)
    expanded: set[str] = set()
    if lora == "fused":
        members, expanded, said = fuse(path, adaptable, members, said)
        made[CONFIG] = json_bytes(said.content, sort_keys=False)
        notes += [f"the ranks of `{key}` are those of its parts beside each other" for key in sorted(expanded)[:1]]
    space = {key: adaptable.assembled(key, own, key in expanded) for key, own in members.items()}
    return Source(
        path, "peft", base, family, arguments, space, path, notes, set_aside, form, made=made, adaptable=adaptable
    )


def open_tensors(path: Path, said: LoraConfig, family: Family) -> tuple[Space, str | None]:
    """The tensors of a PEFT folder, and the form of the Hugging Face model that has layers of their names.

    Raises:
        UserError: there is no safetensors file, or it is damaged.
    """
    if not (path / WEIGHTS).is_file():
        raise UserError(
            f"{path} has {CONFIG}, but no {WEIGHTS}.", "Save it as safetensors; adapter_model.bin is never opened."
        )
    places = safetensors.read_header(path / WEIGHTS)
    named = told_apart(places, said.parameters)
    form = FUSED if named and FUSED in family.forms else None
    return {named.get(name, name): place.stored() for name, place in places.items()}, form


def open_megatron_adapter(path: Path, given: Path | None) -> Source:
    """A Megatron checkpoint whose tensors are all of adapters, or weights that were trained whole.

    Args:
        path: the checkpoint.
        given: a folder with the base's config.json and PEFT's adapter_config.json. None: its own `hf/`.

    Raises:
        UserError: damaged, or it holds something else besides.
    """
    folder = checkpoint.latest(path)
    hf = given or folder / checkpoint.HF
    said = LoraConfig(hf)
    config = checkpoint.read_config(hf)
    family, arguments = understood(config, hf)
    stored = torch_dist.open_checkpoint(folder)
    others = [key for key in stored.tensors if key.startswith(NOT_WEIGHTS)]
    space = per_layer({key: stored.stored(key) for key in stored.tensors if key not in others})
    form = form_of_export(hf)
    adaptable = Adaptable(family, arguments, _vocabulary(space, arguments.vocab_size), form)
    if unknown := space.keys() - adaptable.entries.keys():
        raise UserError(
            f"{folder} should hold an adapter, as {hf / CONFIG} says, but holds {some(unknown)} besides, which are no "
            f"tensors of an adapter of {family.name}.",
            "Convert the base model and its adapters apart.",
        )
    check_tiled(space, folder / torch_dist.METADATA)
    named = (adaptable.names(key, stored.spec) for key, stored in space.items())
    _check_factors(folder, {name: spec.shape for own in named for name, _, spec in own}, adaptable, said)
    notes = left_out([*stored.objects, *others])
    return Source(
        folder,
        "adapter",
        config,
        family,
        arguments,
        space,
        hf,
        notes,
        unmapped(hf),
        form,
        adaptable=adaptable,
        stored=stored,
    )


def _vocabulary(space: Space, vocab_size: int) -> int:
    """Rows of embedding and output layer, where the adapter has something of them."""
    own = [stored.spec.shape[0] for key, stored in space.items() if key == EMBEDDING or key.startswith(_OUTPUTS)]
    return max([rows for rows in own if rows >= vocab_size], default=vocab_size)


_OUTPUTS = (OUTPUT, f"{OUTPUT.removesuffix('.weight')}{ADAPTER}linear_out")


def peft_tensors(source: Source, dtypes: Mapping[str, str]) -> dict[str, TensorSpec]:
    """PEFT name → shape and dtype of what an adapter has, what is set aside included."""
    assert source.adaptable is not None, "an adapter"
    found = {
        name: spec
        for key, stored in source.space.items()
        for name, _, spec in source.adaptable.names(key, TensorSpec(stored.spec.shape, dtypes[key]))
    }
    saved = as_saved(found)
    aside = {name: stored.spec for name, stored in source.set_aside.items()}
    return {saved.get(name, name): spec for name, spec in found.items()} | aside


def in_megatron_order(source: Source, places: Mapping[str, safetensors.Place]) -> Space:
    """The tensors of a PEFT folder under the keys of the adapter that fills it."""
    assert source.adaptable is not None, "an adapter"
    names = {key: [*source.adaptable.names(key, stored.spec)] for key, stored in source.space.items()}
    saved = as_saved([name for own in names.values() for name, _, _ in own])
    return {
        key: source.adaptable.assembled(key, {where: places[saved.get(name, name)].stored() for name, where, _ in own})
        for key, own in names.items()
    }


def stacked(space: Space, adaptable: Adaptable) -> Space:
    """One tensor for all layers, where all layers have it in one shape and the model's layers are of one kind."""
    groups: dict[str, dict[int, str]] = defaultdict(dict)
    for key in space:
        if adaptable.homogeneous and (found := LAYER.fullmatch(key)):
            groups[found[1] + found[3]][int(found[2])] = key
    whole = {
        name: keys
        for name, keys in groups.items()
        if len(keys) == adaptable.layers and len({space[key].spec for key in keys.values()}) == 1
    }
    parts = {key: Part(name, (layer,), None) for name, keys in whole.items() for layer, key in keys.items()}
    return {key: stored for key, stored in space.items() if key not in parts} | canonical_space(space, parts)


def _base_config(path: Path, said: LoraConfig, given: Path | None) -> tuple[Config, Path]:
    """The base's, and where it lies."""
    try:
        folder = given or resolve_model(said.base, said.revision, weights=False)
        return checkpoint.read_config(folder), folder
    except UserError as error:
        raise UserError(
            f"{path} adapts {said.base or 'a model that it does not name'}, whose config.json is needed: {error.what}",
            "Give a folder that has it, without weights, with --config FOLDER.",
        ) from None


def _check_shapes(path: Path, tensors: Space, adaptable: Adaptable) -> None:
    for name, stored in tensors.items():
        site, factor = adaptable.place(name)
        matrix, shape = adaptable.matrix(site), stored.spec.shape
        wanted = matrix if factor is None else factor.shape(matrix, factor.rank_of(shape))
        if shape != wanted:
            raise UserError(
                f"{path}: `{name}` has shape {list(shape)}; by the base model's config.json it has {list(wanted)}.",
                "The adapter is of another model; give that one's config.json with --config FOLDER.",
            )


def _check_factors(path: Path, shapes: Mapping[str, Box], adaptable: Adaptable, said: LoraConfig) -> None:
    """Whether each layer that is adapted has both factors, of the rank that its adapter_config.json says."""
    layers: dict[str, set[Factor]] = defaultdict(set)
    for name, shape in shapes.items():
        site, factor = adaptable.place(name)
        if factor is None:
            continue
        layer = name.removeprefix(BASE).removesuffix(factor.peft)
        layers[layer].add(factor)
        if factor.has_rank:
            said.check_rank(layer, factor.rank_of(shape), adaptable.together(site))
    lacking = {layer + one.peft for layer, own in layers.items() for one in (LINEAR_IN, LINEAR_OUT) if one not in own}
    if lacking:
        raise UserError(
            f"{path} has one of the two factors of layers, but not {some(lacking)}.",
            "The adapter is incomplete: save it again.",
        )


def _members(path: Path, adaptable: Adaptable, tensors: Mapping[str, Stored]) -> dict[str, Members]:
    """The tensors of a PEFT file by Megatron's keys, each layer and each of q, k, v apart."""
    members: dict[str, Members] = defaultdict(dict)
    for name, stored in tensors.items():
        site, factor = adaptable.place(name)
        key = site.rule.megatron if factor is None else key_of(site.rule, factor, (site.number,))
        members[key][site.number, site.position] = stored
    for key, own in members.items():
        if len(own) != len(adaptable.positions(key)):
            raise UserError(
                f"{path} adapts {len(own)} of the {len(adaptable.positions(key))} experts of `{key}`.",
                "Megatron has the factors of all experts of a layer in one tensor; adapt all of them, or none.",
            )
        if len(specs := {stored.spec for stored in own.values()}) > 1:
            found = " and ".join(sorted(f"{list(spec.shape)} in {spec.dtype}" for spec in specs))
            raise UserError(
                f"{path}: the experts of `{key}` have factors of shapes {found}.",
                "Megatron has the factors of all experts of a layer in one tensor; give them one rank and dtype.",
            )
    return members
