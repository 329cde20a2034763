"""LoRA of experts that are one parameter of a layer, `experts.gate_up_proj` [experts, …], as PEFT saves it.

PEFT wraps the module `experts` once for each of its parameters that is adapted, so the names of the factors say how
often, not of which: `experts.base_layer.lora_A.weight` is of the first parameter, `experts.lora_A.weight` of the last.
All experts share a matrix: `lora_A` [experts · r, in] has an expert's rows together, `lora_B` [out, r · experts] has
the columns of rank 0 for every expert first, then those of rank 1.
"""

import re
from collections.abc import Collection, Iterable

from converters.space import Placement, Stored
from converters.tensors import TensorSpec
from swift_mega.base.errors import UserError

PARAMETERS = ("gate_up_proj", "down_proj")
"""In the order in which the module has them, and is wrapped."""
INNER = ".base_layer"
_SAVED = re.compile(r"(.+\.experts)(\.base_layer)?(\.lora_[AB]\.weight)")
_NAMED = re.compile(rf"(.+\.experts)\.({'|'.join(PARAMETERS)})(\.lora_[AB]\.weight)")


def told_apart(names: Collection[str], targets: Iterable[str]) -> dict[str, str]:
    """Name in a PEFT file → the same with the parameter in it, `experts.down_proj.lora_A.weight`.

    Args:
        names: all that the file has.
        targets: `target_parameters` of the adapter's config.

    Raises:
        UserError: the one parameter that is adapted is not named there.
    """
    found = {name: match for name in names if (match := _SAVED.fullmatch(name))}
    if any(match[2] for match in found.values()):
        return {name: f"{m[1]}.{PARAMETERS[0 if m[2] else 1]}{m[3]}" for name, m in found.items()}
    adapted = {own for target in targets for own in PARAMETERS if target.endswith(own)}
    if found and len(adapted) != 1:
        raise UserError(
            f"`{next(iter(found))}` is of gate_up_proj or of down_proj; target_parameters names {sorted(adapted)}.",
            "Name the one that is adapted in target_parameters of adapter_config.json.",
        )
    return {name: f"{m[1]}.{next(iter(adapted))}{m[3]}" for name, m in found.items()}


def as_saved(names: Collection[str]) -> dict[str, str]:
    """The way back: name with the parameter in it → name in a PEFT file."""
    found = {name: match for name in names if (match := _NAMED.fullmatch(name))}
    first = {match[1] for match in found.values() if match[2] == PARAMETERS[1]}
    return {
        name: f"{m[1]}{INNER if m[2] == PARAMETERS[0] and m[1] in first else ''}{m[3]}" for name, m in found.items()
    }


def of_expert(stored: Stored, expert: int, experts: int, is_input: bool) -> Stored:
    """One expert's factor [r, in] or [out, r] within that of all, [experts · r, in] or [out, r · experts]."""
    (whole,) = stored.placements
    (rows, columns), (down, right) = stored.spec.shape, whole.strides
    if is_input:
        shape, strides, first = (rows // experts, columns), (down, right), expert * (rows // experts) * down
    else:
        shape, strides, first = (rows, columns // experts), (down, experts * right), expert * right
    placement = Placement((0, 0), shape, whole.file, whole.begin + first, strides)
    return Stored(TensorSpec(shape, stored.spec.dtype), [placement])
