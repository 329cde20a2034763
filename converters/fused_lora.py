"""LoRA with one `linear_in` for q, k and v, and for gate and up, out of factors that each of them has by itself.

Where the factors `lora_A` are the same, they are the one. Where they differ, their ranks are put beside each other:
with A = [A_q; A_k; A_v] and the rows of q as [B_q 0 0], the product is the same, number by number. Only the rank
grows, and with it alpha, so that the scale stays.
"""

import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np

from converters.engine import read_whole
from converters.lora import LINEAR_IN, LINEAR_OUT, MAGNITUDE, WEIGHT, Adaptable, Entry, Members, key_of
from converters.lora_config import LoraConfig
from swift_mega.base.errors import UserError

Form = Literal["apart", "fused"]
"""Of LoRA in Megatron: each of q, k and v, of gate and up, has a `linear_in`, or they share one."""


def fuse(
    path: Path, adaptable: Adaptable, members: dict[str, Members], said: LoraConfig
) -> tuple[dict[str, Members], set[str], LoraConfig]:
    """Members by keys of fused layers, the keys of those whose ranks lie side by side, and what PEFT is to know.

    Args:
        path: of the adapter, for messages.
        adaptable: its model.
        members: by keys of what is apart.
        said: its adapter_config.json.

    Raises:
        UserError: it cannot be fused without arithmetic.
    """
    fused: dict[str, Members] = defaultdict(dict)
    for key, own in members.items():
        entry = adaptable.entries[key]
        every = tuple(range(len(entry.rule.sources)))
        if entry.factor is not None and len(every) > 1:
            _check_plain(path, key, entry)
            key = key_of(entry.rule, entry.factor, every)
        fused[key] |= own
    for key in [key for key in fused if adaptable.entries[key].fused]:
        _check_dtype(path, key, fused[key])
    expanded: set[str] = set()
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for key in [key for key in fused if adaptable.entries[key].fused and adaptable.entries[key].factor == LINEAR_IN]:
        rule = adaptable.entries[key].rule
        scale, rank = _scale(path, key, adaptable, fused[key], said)
        if _differ(fused[key]):
            rank = _joint_rank(path, key, adaptable, fused[key])
            expanded |= {key, key_of(rule, LINEAR_OUT, adaptable.entries[key].numbers)}
        for name in _modules(key, adaptable):
            ranks[name] = rank
            alphas[name] = scale * (math.sqrt(rank) if said.content.get("use_rslora") else rank)
    return dict(fused), expanded, said.with_layers(ranks, alphas)


def _check_plain(path: Path, key: str, entry: Entry) -> None:
    if entry.factor not in (LINEAR_IN, LINEAR_OUT):
        kind = "DoRA" if entry.factor == MAGNITUDE else "LoRA with a bias"
        raise UserError(
            f"{path} has `{key}`: {kind}, which layers that share a `linear_in` do not have.",
            "Leave out --lora fused; Megatron has it for q, k and v, and for gate and up, apart.",
        )


def _check_dtype(path: Path, key: str, own: Members) -> None:
    if len(dtypes := {stored.spec.dtype for stored in own.values()}) > 1:
        raise UserError(
            f"{path}: what `{key}` fuses is stored in different dtypes: {', '.join(sorted(dtypes))}.",
            "Leave out --lora fused, or save the adapter in one dtype.",
        )


def _scale(path: Path, key: str, adaptable: Adaptable, own: Members, said: LoraConfig) -> tuple[float, int]:
    """The one scale of what is fused, and its rank."""
    names = _modules(key, adaptable)
    sources = len(adaptable.entries[key].numbers)
    positions = {position: number for number, position in enumerate(adaptable.positions(key))}
    scales = {}
    for (number, position), stored in own.items():
        name = names[positions[position] * sources + number]
        scales[name] = said.scale(name, stored.spec.shape[0])
    if len(set(scales.values())) > 1:
        listed = ", ".join(f"{name} {scale:g}" for name, scale in scales.items())
        raise UserError(
            f"{path}: what `{key}` fuses has different scales: {listed}.",
            "Leave out --lora fused, or train them with one ratio of alpha and r.",
        )
    return next(iter(scales.values())), next(iter(own.values())).spec.shape[0]


def _modules(key: str, adaptable: Adaptable) -> list[str]:
    """Names of the Hugging Face layers in a fused one: position by position, source by source."""
    rule = adaptable.entries[key].rule
    where = [dict(zip(rule.stack, position, strict=True)) for position in adaptable.positions(key)]
    pairs = itertools.product(where, rule.sources)
    return [source.name.format_map(position).removesuffix(WEIGHT) for position, source in pairs]


def _differ(own: Members) -> bool:
    """Whether any position has parts with other `lora_A`."""
    first: dict[tuple[int, ...], np.ndarray] = {}
    for (_, position), stored in own.items():
        array = read_whole(stored)
        if not np.array_equal(first.setdefault(position, array), array):
            return True
    return False


def _joint_rank(path: Path, key: str, adaptable: Adaptable, own: Members) -> int:
    found: dict[tuple[int, ...], int] = defaultdict(int)
    for (_, position), stored in own.items():
        found[position] += stored.spec.shape[0]
    if len(set(found.values())) > 1:
        raise UserError(
            f"{path}: the experts of `{key}` would have ranks {sorted(set(found.values()))}, and Megatron has one.",
            "Leave out --lora fused.",
        )
    return next(iter(found.values()))
