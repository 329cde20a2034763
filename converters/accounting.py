"""Nothing is dropped: what the rules want is compared with what is there, before a byte moves.

A tensor without a place stops the conversion with its name. Three kinds may be left out, and that is
said: buffers that the config determines, an output layer that is stored although it is tied, and what
an MTP layer repeats of the rest of the model, which an export repeats again.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from converters.config_table import MegatronArguments
from converters.families._common import EMBEDDING, OUTPUT
from converters.family import Family, sizes
from converters.rules import HfTensor, Rule
from converters.stores.safetensors import SafetensorsFolder
from converters.tensors import WEIGHT_DTYPES
from swift_mega.base.errors import UserError

SHOWN = 8
"""Names in a message before `and … more`."""


def hf_shapes(rules: Iterable[Rule], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Hugging Face name → shape of every tensor the rules speak of."""
    return {name: source.shape(sizes) for rule in rules for source in rule.sources for name in source.names(sizes)}


def mismatch(wanted: Iterable[str], found: Iterable[str]) -> str:
    """`missing: …; without a place: …`, or nothing where both hold the same names."""
    wanted, found = set(wanted), set(found)
    return "; ".join(
        f"{what}: {some(names)}"
        for what, names in (("missing", wanted - found), ("without a place", found - wanted))
        if names
    )


class Accounted(NamedTuple):
    """What of a folder no Megatron tensor takes."""

    notes: list[str]
    """Each in words."""
    copies: dict[str, str]
    """Tensor that repeats another → that other."""


def account(
    family: Family,
    arguments: MegatronArguments,
    sizes: Mapping[str, int],
    store: SafetensorsFolder,
    rules: Sequence[Rule],
) -> Accounted:
    """Check that `store` holds the model's tensors, all of them and no others; say what may be left out.

    Raises:
        UserError: a tensor is missing, has no place, or has another shape or dtype than it must have.
    """
    wanted = hf_shapes(rules, sizes)
    found = set(store.tensors)
    buffers = _buffers(family, sizes) & found
    tied = _tied_copy(family, arguments, store)
    copies = {copy: of for copy, of in family.copies_for(arguments).items() if {copy, of} <= found}
    if fault := mismatch(wanted, found - buffers - tied - set(copies)):
        raise UserError(
            f"{store.path} does not hold the tensors of {family.name} with this config.json: {fault}.",
            "Are config.json and weights of the same model and complete? `convert --allow-unmapped` keeps what has no "
            "place in a file beside the weights; an export puts it back.",
        )
    for name, shape in wanted.items():
        _check_tensor(name, shape, store)
    for copy, of in copies.items():
        _check_copy(copy, of, store)
    notes = [f"left out buffers that the config determines: {some(buffers)}"] if buffers else []
    notes += [f"left out `{name}`: tied, and byte for byte the same as the embedding" for name in tied]
    return Accounted(notes + [f"`{copy}` repeats `{of}` byte for byte" for copy, of in copies.items()], copies)


def without_a_place(family: Family, arguments: MegatronArguments, names: Collection[str]) -> set[str]:
    """The tensors of a folder that are neither weights of the model nor repeat or follow from anything in it."""
    arguments = family.as_stored(arguments, names)
    own = sizes(arguments, arguments.vocab_size)
    rules = family.rules_for(arguments, family.form_of(names, arguments))
    output = {rule.sources[0].name for rule in family.rules if rule.megatron == OUTPUT}
    return set(names) - set(hf_shapes(rules, own)) - _buffers(family, own) - output - set(family.copies_for(arguments))


def _buffers(family: Family, sizes: Mapping[str, int]) -> set[str]:
    return {name for pattern in family.recomputable for name in HfTensor(pattern, ()).names(sizes)}


def _check_copy(copy: str, of: str, store: SafetensorsFolder) -> None:
    if not store.places[of].file.exists():  # a folder that is only planned
        return
    same = store.tensors[copy] == store.tensors[of]
    if not same or not _same_bytes(store.array(copy), store.array(of)):
        raise UserError(
            f"`{copy}` should repeat `{of}`, but they differ; Megatron has one of them.",
            "Nothing was converted. Was one of them trained and the other not saved?",
        )


def _check_tensor(name: str, shape: tuple[int, ...], store: SafetensorsFolder) -> None:
    spec = store.tensors[name]
    if spec.shape != shape:
        raise UserError(
            f"`{name}` has shape {list(spec.shape)}, config.json means {list(shape)}.",
            "Take config.json and weights from the same model.",
        )
    if spec.dtype not in WEIGHT_DTYPES:
        raise UserError(
            f"`{name}` is {spec.dtype}; a weight is one of {', '.join(WEIGHT_DTYPES)}.", "Take the unquantised model."
        )


def _tied_copy(family: Family, arguments: MegatronArguments, store: SafetensorsFolder) -> set[str]:
    """The output layer, if it is stored beside the embedding it is tied to and has the same bytes."""
    names = {rule.megatron: rule.sources[0].name for rule in family.rules}
    embedding, output = names[EMBEDDING], names[OUTPUT]
    if arguments.untie_embeddings_and_output_weights or not {embedding, output} <= set(store.tensors):
        return set()
    same = store.tensors[output] == store.tensors[embedding]
    if not same or not _same_bytes(store.array(output), store.array(embedding)):
        raise UserError(
            f"config.json ties `{output}` to `{embedding}`, but the file holds both and they differ.",
            "Set tie_word_embeddings to false in config.json if the model was trained untied.",
        )
    return {output}


def _same_bytes(one: np.ndarray, other: np.ndarray, rows: int = 4096) -> bool:
    """Equal, compared a few megabytes at a time."""
    blocks = range(0, len(one), rows)
    return all(one[first : first + rows].tobytes() == other[first : first + rows].tobytes() for first in blocks)


def some(names: set[str]) -> str:
    """A few names, for a message."""
    shown = ", ".join(f"`{name}`" for name in sorted(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
