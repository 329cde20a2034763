"""Rows of the table Hugging Face config ⇄ Megatron arguments for layers that are not all of one kind."""

from dataclasses import dataclass
from typing import Any

from converters.config_table import Config, MegatronArguments, Row
from swift_mega.base.errors import UserError

LINEAR, FULL = "linear_attention", "full_attention"
OLD_NAMES = {"mamba": LINEAR, "attention": FULL}
"""Of kinds of layers, before transformers 5."""
LETTERS = {LINEAR: "M", FULL: "*", "mlp": "-", "moe": "E"}
"""transformers' kinds of layers → megatron-core's, where a layer is one thing only."""


@dataclass(frozen=True)
class LinearLayers:
    """`layer_types` names each layer; without it every `full_attention_interval`-th has full attention."""

    fields: tuple[str, ...] = ("layer_types", "full_attention_interval")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        count, every = config["num_hidden_layers"], config.get("full_attention_interval") or 4
        named = config.get("layer_types") or [LINEAR if (layer + 1) % every else FULL for layer in range(count)]
        named = [OLD_NAMES.get(kind, kind) for kind in named]
        if len(named) != count or not set(named) <= {LINEAR, FULL}:
            raise UserError(
                f"config.json: `layer_types` has {len(named)} entries for {count} layers: "
                f"{', '.join(dict.fromkeys(named))}.",
                f"One of {LINEAR} and {FULL} for each layer.",
            )
        linear = [int(kind == LINEAR) for kind in named]
        return {"linear_attention_freq": linear if any(linear) else None}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        linear = arguments.layers("linear attention")
        return {"layer_types": [LINEAR if layer in linear else FULL for layer in arguments.layers("all")]}


@dataclass(frozen=True)
class Pattern:
    """`layers_block_type` names each layer, `hybrid_override_pattern` has a letter for it; their number follows."""

    fields: tuple[str, ...] = ("layers_block_type", "hybrid_override_pattern", "num_hidden_layers")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        named, pattern = config.get("layers_block_type"), config.get("hybrid_override_pattern")
        letters = {**LETTERS, **{old: LETTERS[new] for old, new in OLD_NAMES.items()}}
        found = (pattern or "ME*-") if named is None else "".join(letters.get(kind, "?") for kind in named)
        if not found or set(found) - set(LETTERS.values()):
            raise UserError(
                f"config.json: layers_block_type={named!r}, hybrid_override_pattern={pattern!r} do not say what each "
                "layer is.",
                f"Possible: {', '.join(LETTERS)}, or the letters {' '.join(LETTERS.values())}.",
            )
        return {"hybrid_override_pattern": found, "num_layers": len(found)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        names = {letter: name for name, letter in LETTERS.items()}
        return {"layers_block_type": [names[letter] for letter in arguments.hybrid_override_pattern or ""]}


class WithExperts:
    """Rows that mean something only where a layer has experts."""

    def __init__(self, *rows: Row) -> None:
        self.rows = rows
        self.fields = tuple(field for row in rows for field in row.fields)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        if "E" not in Pattern().to_megatron(config)["hybrid_override_pattern"]:
            return {}
        values: dict[str, Any] = {}
        missing: tuple[str, ...] = ()
        for row in self.rows:
            values |= row.to_megatron(config)
            missing += values.pop("missing", ())
        return values | ({"missing": missing} if missing else {})

    def to_hf(self, arguments: MegatronArguments) -> Config:
        if not arguments.layers("moe"):
            return {}
        return {name: value for row in self.rows for name, value in row.to_hf(arguments).items()}


@dataclass(frozen=True)
class OnlyMtpLayer:
    """The one layer that predicts a further token; of several, Hugging Face's names would not say which is meant."""

    fields: tuple[str, ...] = ("num_nextn_predict_layers",)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        count = config.get("num_nextn_predict_layers", 1)
        if count not in (0, 1):
            raise UserError(
                f"config.json: `num_nextn_predict_layers` is {count}; all of them would share one `mtp.fc`, which "
                "megatron-core has for each layer.",
                "Possible: 0 or 1.",
            )
        return {"mtp_num_layers": count}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {"num_nextn_predict_layers": arguments.mtp_num_layers}
