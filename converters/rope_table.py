"""Rows about rotary embeddings, in every spelling: bases, scalings, and which part of a head is rotated."""

import math
from dataclasses import dataclass, field
from typing import Any

from converters.config_table import Config, MegatronArguments, Yarn
from converters.window_table import FULL, WINDOWED
from swift_mega.base.errors import UserError

NO_SCALING: dict[str, Any] = {
    "use_rope_scaling": False,
    "rope_scaling_factor": 8.0,
    "seq_len_interpolation_factor": None,
    "dynamic_rope_factor": None,
    "yarn": None,
}

LLAMA3_FIXED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of `megatron.core…RotaryEmbedding._apply_scaling`, which no argument changes."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: transformers 5's `rope_parameters`, or `rope_theta` with `rope_scaling` as before it."""

    base: float = 10000.0
    """`rope_theta` where the file has none."""
    partial: float | None = None
    """`partial_rotary_factor` where the file has none. None: the family rotates whole heads only."""
    neighbours: bool = False
    """Rotates pairs of neighbours instead of the two halves of a head."""
    absent: Config = field(default_factory=dict)
    """What the file means where it says nothing at all."""
    fields: tuple[str, ...] = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        # transformers gives `rope_scaling` precedence where a file has both.
        spelling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        rope = config.get(spelling) or self.absent
        if any(isinstance(value, dict) for value in rope.values()):
            raise UserError(
                f"config.json: `{spelling}` differs from layer to layer ({', '.join(rope)}).",
                "This architecture has one rotary embedding for all layers; one entry.",
            )
        percent = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or self.partial or 1.0
        if self.partial is None and percent != 1.0:
            raise UserError(
                f"config.json: `partial_rotary_factor` is {percent}.", "This family rotates the whole head: 1.0."
            )
        theta = rope.get("rope_theta") or config.get("rope_theta") or self.base
        scaling = _scaling(spelling, {"rope_theta": theta, **rope}, config)
        if scaling["yarn"] is not None and (percent != 1.0 or self.neighbours):
            scaling = {**NO_SCALING, "missing": ("yarn partial",)}
        return {
            "rotary_base": theta,
            "rotary_percent": percent,
            "rotary_interleaved": self.neighbours,
            **scaling,
        }

    def to_hf(self, arguments: MegatronArguments) -> Config:
        percent = {} if self.partial is None else {"partial_rotary_factor": arguments.rotary_percent}
        return {"rope_parameters": _rope_entry(arguments) | percent}


@dataclass(frozen=True)
class RopeByLayer:
    """Rotary embeddings for full and for windowed layers; only the former may be scaled."""

    base: float
    local_base: float
    """`rope_theta` of full and of windowed layers where the file has none."""
    fields: tuple[str, ...] = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        entries = config.get("rope_parameters") or {}
        theta = config.get("rope_theta") or self.base
        full = {"rope_theta": theta, **(entries.get(FULL) or {}), **(config.get("rope_scaling") or {})}
        local = {"rope_theta": config.get("rope_local_base_freq") or self.local_base, **(entries.get(WINDOWED) or {})}
        spelling = f"rope_parameters.{FULL}"
        if set(entries) - {FULL, WINDOWED} or _scaling(spelling, local, config) != NO_SCALING:
            raise UserError(
                "config.json: `rope_parameters` is not of the form that this architecture has.",
                f"An entry for {FULL} and an unscaled one for {WINDOWED}.",
            )
        return {
            "rotary_base": full["rope_theta"],
            "rotary_local_base": local["rope_theta"],
            **_scaling(spelling, full, config),
        }

    def to_hf(self, arguments: MegatronArguments) -> Config:
        local = {"rope_theta": arguments.rotary_local_base, "rope_type": "default"}
        return {"rope_parameters": {FULL: _rope_entry(arguments), WINDOWED: local}}


def _scaling(spelling: str, rope: Config, config: Config) -> dict[str, Any]:
    """The arguments of one rotary embedding's scaling."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("llama_4_scaling_beta"):
        return {**NO_SCALING, "missing": ("query scale",)}
    if kind == "default":
        return NO_SCALING
    if kind in ("linear", "llama3", "dynamic") and "factor" not in rope:
        raise UserError(f"config.json: `{spelling}` of type {kind!r} has no `factor`.", "Give it.")
    if kind == "linear":
        return {**NO_SCALING, "seq_len_interpolation_factor": rope["factor"]}
    if kind == "dynamic":
        return {**NO_SCALING, "dynamic_rope_factor": rope["factor"]}
    if kind == "yarn":
        return {**NO_SCALING, **yarn(rope, config)}
    llama3 = {"original_max_position_embeddings": config["max_position_embeddings"], **rope}
    if kind == "llama3" and all(llama3.get(name) == value for name, value in LLAMA3_FIXED.items()):
        return {**NO_SCALING, "use_rope_scaling": True, "rope_scaling_factor": rope["factor"]}
    return {**NO_SCALING, "missing": (f"rope {kind}",)}


def _rope_entry(arguments: MegatronArguments) -> Config:
    """`rope_parameters` of the (full) layers."""
    rope: Config = {"rope_theta": arguments.rotary_base, "rope_type": "default"}
    if arguments.yarn is not None:
        rope |= yarn_entry(arguments.yarn)
    elif arguments.use_rope_scaling:
        rope |= {"rope_type": "llama3", "factor": arguments.rope_scaling_factor, **LLAMA3_FIXED}
    elif arguments.seq_len_interpolation_factor is not None:
        rope |= {"rope_type": "linear", "factor": arguments.seq_len_interpolation_factor}
    elif arguments.dynamic_rope_factor is not None:
        rope |= {"rope_type": "dynamic", "factor": arguments.dynamic_rope_factor}
    return rope


def yarn(rope: Config, config: Config) -> dict[str, Any]:
    """Megatron's YaRN for an entry of type yarn, or what it lacks for it.

    transformers takes `mscale` only together with `mscale_all_dim`.
    """
    both = bool(rope.get("mscale") and rope.get("mscale_all_dim"))
    if rope.get("mscale_all_dim") and not both:
        return {"missing": ("yarn factor",)}
    original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    found = Yarn(
        factor=rope.get("factor") or config["max_position_embeddings"] / original,
        original_max_position_embeddings=original,
        beta_fast=rope.get("beta_fast") or 32.0,
        beta_slow=rope.get("beta_slow") or 1.0,
        mscale=rope["mscale"] if both else 1.0,
        mscale_all_dim=rope["mscale_all_dim"] if both else 0.0,
        correction_range_round_to_int=rope.get("truncate", True),
    )
    wanted = rope.get("attention_factor")
    if wanted is not None and not math.isclose(wanted, _attention_factor(found), rel_tol=1e-9):
        return {"missing": ("yarn factor",)}
    return {"yarn": found}


def _attention_factor(yarn: Yarn) -> float:
    """What queries and keys are multiplied by, as megatron-core computes it."""
    if yarn.factor <= 1:
        return 1.0
    grown = 0.1 * math.log(yarn.factor)
    return (yarn.mscale * grown + 1.0) / (yarn.mscale_all_dim * grown + 1.0)


def yarn_entry(yarn: Yarn | None) -> Config:
    """The way back."""
    if yarn is None:
        return {"rope_type": "default"}
    entry = {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_max_position_embeddings,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "truncate": yarn.correction_range_round_to_int,
    }
    return entry | ({"mscale": yarn.mscale, "mscale_all_dim": yarn.mscale_all_dim} if yarn.mscale_all_dim else {})
