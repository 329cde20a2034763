"""A model family: how its config and its tensors are called on both sides, as data.

The files in `converters/families/` each hold one `FAMILY`; conversion, model building and the planner
read it. Adding a family means adding a file there.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from converters import families
from converters.config_table import Config, MegatronArguments, Row, check_forms
from converters.rules import DECODER_LAYERS, MTP_LAYERS, Rule
from swift_mega.base.errors import UserError


@dataclass(frozen=True)
class Family:
    """Everything the project knows about one architecture."""

    name: str
    """transformers' `model_type`."""

    architectures: tuple[str, ...]
    """transformers' class names, as in `architectures` of config.json."""

    config: tuple[Row, ...]
    rules: tuple[Rule, ...]
    recomputable: tuple[str, ...] = ()
    """Names of stored buffers that the config determines."""
    mtp: tuple[Rule, ...] = ()
    """Of the layers that predict further tokens (MTP). Their files come after those of the decoder's layers."""
    copies: tuple[tuple[str, str], ...] = ()
    """(tensor of an MTP layer, the tensor it repeats byte for byte)."""

    @property
    def forms(self) -> tuple[str, ...]:
        """The ways in which folders of this family hold its tensors; the first is the one that is written."""
        return tuple(dict.fromkeys(rule.form for rule in self.rules if rule.form))

    def megatron_arguments(self, hf_config: Config) -> MegatronArguments:
        """The config in Megatron's words.

        Raises:
            UserError: a value that megatron-core cannot express; names field, value and what is possible.
        """
        values: dict[str, Any] = {}
        missing: list[str] = []
        for row in self.config:
            check_forms(row.fields, hf_config)
            values |= row.to_megatron(hf_config)
            missing += values.pop("missing", ())
        return MegatronArguments(**values, missing=tuple(missing))

    def hf_config(self, arguments: MegatronArguments, base: Config | None = None) -> Config:
        """The way back. What `base` already says the same way keeps its spelling, the rest is written anew."""
        if arguments.missing and not base:
            raise UserError(
                f"missing={arguments.missing!r} cannot be written as this architecture, {self.name}: no Megatron "
                "argument says it.",
                "Export with the model's own config.json.",
            )
        config: Config = dict(base) if base else {"architectures": [self.architectures[0]], "model_type": self.name}
        for row in self.config:
            written = row.to_hf(arguments)
            if base is not None and _says(row, base, arguments):
                continue
            config = {name: value for name, value in config.items() if name not in row.fields} | written
        self._check_nothing_lost(config, arguments)
        return config

    def _check_nothing_lost(self, config: Config, arguments: MegatronArguments) -> None:
        """What was written must read back as the same model: a row that has no words for a value would drop it."""
        found = self.megatron_arguments(config)
        for field in dataclasses.fields(arguments):
            wanted, read = getattr(arguments, field.name), getattr(found, field.name)
            if wanted != read:
                raise UserError(
                    f"Megatron argument {field.name}={wanted!r} cannot be written as this architecture, {self.name}, "
                    f"whose config.json means {read!r}.",
                    "Export with the config.json of the architecture that was trained.",
                )

    def rules_for(self, arguments: MegatronArguments, form: str | None = None) -> list[Rule]:
        """The rules whose tensor this model has, as a folder of that `form` (None: the first) holds it.

        Stacked over layers where all layers are of one kind, for each layer apart where they are not.
        """
        form = form or next(iter(self.forms), None)
        rules = [rule for rule in self.rules if _applies(rule, arguments, form)]
        mtp = [rule for rule in self.mtp if _applies(rule, arguments, form)]
        return [one for rule in rules for one in _by_layer(rule, arguments)] + [
            rule.at(mtp=number, layer=layer) for number, layer in enumerate(arguments.mtp_layers) for rule in mtp
        ]

    def as_stored(self, arguments: MegatronArguments, names: Collection[str]) -> MegatronArguments:
        """`arguments` without MTP layers, if none of `names` is of one, whatever the config says.

        transformers does not load those layers; what it saves has them in the config only.
        """
        mtp = [rule for rule in self.rules_for(arguments) if rule.megatron.startswith(MTP_LAYERS)]
        if {name for rule in mtp for name in (rule.megatron, rule.sources[0].first_name)}.isdisjoint(names):
            return dataclasses.replace(arguments, mtp_num_layers=0)
        return arguments

    def form_of(self, names: Collection[str], arguments: MegatronArguments) -> str | None:
        """The form of a folder that holds `names`: the first of which it has a tensor."""
        for form in self.forms:
            own = (rule for rule in self.rules_for(arguments, form) if rule.form == form)
            if any(rule.sources[0].first_name in names for rule in own):
                return form
        return None

    def copies_for(self, arguments: MegatronArguments) -> dict[str, str]:
        """Hugging Face name of each tensor that repeats another → that other."""
        return {copy.format(layer=layer): of for layer in arguments.mtp_layers for copy, of in self.copies}


def _applies(rule: Rule, arguments: MegatronArguments, form: str | None) -> bool:
    return (rule.when is None or bool(getattr(arguments, rule.when))) and rule.form in (None, form)


def _by_layer(rule: Rule, arguments: MegatronArguments) -> list[Rule]:
    if not rule.megatron.startswith(DECODER_LAYERS):
        return [rule]
    layers = arguments.layers(rule.layers)
    if arguments.homogeneous:
        return [rule] if layers else []
    return [rule.apart().at(layer=layer) for layer in layers]


def _says(row: Row, config: Config, arguments: MegatronArguments) -> bool:
    """Whether `config` already states, through this row, what `arguments` ask for."""
    said = dict(row.to_megatron(config))
    missing = set(said.pop("missing", ()))
    return missing <= set(arguments.missing) and all(getattr(arguments, name) == said[name] for name in said)


def sizes(arguments: MegatronArguments, padded_vocab_size: int) -> dict[str, int]:
    """The named dimensions that rules speak of."""
    return {
        "layer": arguments.num_layers,
        "hidden": arguments.hidden_size,
        "ffn": arguments.ffn_hidden_size,
        "gate_up": 2 * arguments.ffn_hidden_size,
        "head": arguments.kv_channels,
        "heads": arguments.num_attention_heads,
        "group": arguments.num_query_groups,
        "query": arguments.num_attention_heads * arguments.kv_channels,
        "query_gate": 2 * arguments.num_attention_heads * arguments.kv_channels,
        "key_value": arguments.num_query_groups * arguments.kv_channels,
        "qkv": (arguments.num_attention_heads + 2 * arguments.num_query_groups) * arguments.kv_channels,
        "expert": arguments.num_moe_experts or 0,
        "expert_ffn": arguments.moe_ffn_hidden_size or 0,
        "expert_gate_up": 2 * (arguments.moe_ffn_hidden_size or 0),
        "expert_in": arguments.moe_latent_size or arguments.hidden_size,
        "shared_ffn": arguments.moe_shared_expert_intermediate_size or 0,
        "one": 1,
        "two_hidden": 2 * arguments.hidden_size,
        **_latent_sizes(arguments),
        **_linear_sizes(arguments),
        **_mamba_sizes(arguments),
        "vocab": arguments.vocab_size,
        "padded_vocab": padded_vocab_size,
    }


def _latent_sizes(arguments: MegatronArguments) -> dict[str, int]:
    if arguments.kv_lora_rank is None:
        return {}
    heads, rank = arguments.num_attention_heads, arguments.kv_lora_rank
    plain, rotated, value = arguments.qk_head_dim or 0, arguments.qk_pos_emb_head_dim or 0, arguments.v_head_dim or 0
    return {
        "query_rank": arguments.q_lora_rank or 0,
        "latent": rank + rotated,
        "latent_rank": rank,
        "latent_query": heads * (plain + rotated),
        "latent_key_value": heads * (plain + value),
        "latent_value": heads * value,
    }


def _linear_sizes(arguments: MegatronArguments) -> dict[str, int]:
    """Of a gated delta net."""
    key_heads, value_heads = arguments.linear_num_key_heads or 0, arguments.linear_num_value_heads or 0
    key, value = key_heads * (arguments.linear_key_head_dim or 0), value_heads * (arguments.linear_value_head_dim or 0)
    return {
        "linear_key_heads": key_heads,
        "linear_value_heads": value_heads,
        "linear_value_head": arguments.linear_value_head_dim or 0,
        "linear_key": key,
        "linear_value": value,
        "linear_qkv": 2 * key + value,
        "linear_qkvz": 2 * key + 2 * value,
        "linear_ba": 2 * value_heads,
        "linear_kernel": arguments.linear_conv_kernel_dim or 0,
    }


def _mamba_sizes(arguments: MegatronArguments) -> dict[str, int]:
    heads = arguments.mamba_num_heads or 0
    inner = heads * (arguments.mamba_head_dim or 0)
    states = (arguments.mamba_num_groups or 0) * (arguments.mamba_state_dim or 0)
    return {
        "mamba_heads": heads,
        "mamba_inner": inner,
        "mamba_states": states,
        "mamba_conv": inner + 2 * states,
        "mamba_in": 2 * inner + 2 * states + heads,
        "mamba_kernel": arguments.mamba_conv_kernel_dim or 0,
    }


def padded_vocab_size(vocab_size: int, divisible_by: int = 128, tensor_parallel: int = 1) -> int:
    """The next multiple of `divisible_by × tensor_parallel`, as Megatron pads."""
    multiple = divisible_by * tensor_parallel
    return -(-vocab_size // multiple) * multiple


@functools.cache
def registry() -> dict[str, Family]:
    """Architecture name → family, from the data files."""
    names = [module.name for module in pkgutil.iter_modules(families.__path__) if not module.name.startswith("_")]
    found = [importlib.import_module(f"{families.__name__}.{name}").FAMILY for name in sorted(names)]
    return {architecture: family for family in found for architecture in family.architectures}


def family_of(hf_config: Config) -> Family:
    """The family of a `config.json`.

    Raises:
        UserError: an architecture without a data file; lists those that have one. Or `model_type` is another family's.
    """
    known = registry()
    named = hf_config.get("architectures") or [
        architecture for architecture, family in known.items() if family.name == hf_config.get("model_type")
    ]
    for architecture in named:
        if architecture in known:
            _check_model_type(hf_config, architecture, known[architecture])
            return known[architecture]
    raise UserError(
        f"the architecture {', '.join(named) or hf_config.get('model_type', 'of this config.json')} is not supported.",
        f"Supported: {', '.join(sorted(known))}.",
    )


def _check_model_type(hf_config: Config, architecture: str, family: Family) -> None:
    """An unknown `model_type` is a model that borrows the architecture's code; another family's is a mistake."""
    said = hf_config.get("model_type")
    if said != family.name and said in {other.name for other in registry().values()}:
        raise UserError(
            f"config.json: `architectures` is {architecture} ({family.name}), but `model_type` is {said}.",
            "Take config.json from the model's own folder.",
        )
