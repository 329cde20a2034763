"""Rows of the table Hugging Face config ⇄ Megatron arguments for experts and multi-latent attention."""

from dataclasses import dataclass
from typing import Any

from converters.config_table import Config, MegatronArguments
from converters.rope_table import Rope, yarn, yarn_entry
from converters.window_table import NO_WINDOW


@dataclass(frozen=True)
class Spelled:
    """The same value under two names, of which Hugging Face has several; the first is written."""

    fields: tuple[str, ...]
    megatron: str
    default: Any

    def to_megatron(self, config: Config) -> dict[str, Any]:
        found = (config[name] for name in self.fields if config.get(name) is not None)
        return {self.megatron: next(found, self.default)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {self.fields[0]: getattr(arguments, self.megatron)}


@dataclass(frozen=True)
class LayersBySteps:
    """Every `decoder_sparse_step`-th layer has experts, but for those in `mlp_only_layers`."""

    fields: tuple[str, ...] = ("decoder_sparse_step", "mlp_only_layers")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        step, dense = config.get("decoder_sparse_step") or 1, config.get("mlp_only_layers") or []
        layers = range(config["num_hidden_layers"])
        return layers_with_experts([int((layer + 1) % step == 0 and layer not in dense) for layer in layers])

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {"decoder_sparse_step": 1, "mlp_only_layers": arguments.layers("dense")}


@dataclass(frozen=True)
class FirstLayersDense:
    """The first layers are dense, all others have experts."""

    default: int
    fields: tuple[str, ...] = ("first_k_dense_replace",)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        dense = config.get(self.fields[0], self.default)
        return layers_with_experts([int(layer >= dense) for layer in range(config["num_hidden_layers"])])

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {self.fields[0]: len(arguments.layers("dense"))}


@dataclass(frozen=True)
class LayersInRange:
    """Every `moe_layer_interval`-th layer from a first to a last one has experts."""

    fields: tuple[str, ...] = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        first, last = config.get("moe_layer_start_index", 1), config.get("moe_layer_end_index", -1)
        step, count = config.get("moe_layer_interval") or 1, config["num_hidden_layers"]
        inside = range(first, count if last == -1 else last + 1)
        return layers_with_experts([int(layer in inside and (layer + 1) % step == 0) for layer in range(count)])

    def to_hf(self, arguments: MegatronArguments) -> Config:
        layers = arguments.layers("moe")
        return dict(zip(self.fields, (layers[0], layers[-1], 1), strict=True))


@dataclass(frozen=True)
class ListedLayers:
    """`moe_layers` lists the layers with experts; without it every `interleave_moe_layer_step`-th has them."""

    fields: tuple[str, ...] = ("moe_layers", "interleave_moe_layer_step")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        step, layers = config.get("interleave_moe_layer_step") or 1, range(config["num_hidden_layers"])
        listed = config.get("moe_layers") or list(layers[step - 1 :: step])
        return layers_with_experts([int(layer in listed) for layer in layers])

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {"moe_layers": arguments.layers("moe")}


@dataclass(frozen=True)
class Needs:
    """What every model of the family needs and megatron-core does not have; a name in `converters.missing`."""

    feature: str
    fields: tuple[str, ...] = ()

    def to_megatron(self, config: Config) -> dict[str, Any]:
        return {"missing": (self.feature,)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {}


def layers_with_experts(experts: list[int]) -> dict[str, Any]:
    """Megatron's argument for a list of 1 (experts) and 0 (dense)."""
    return {"moe_layer_freq": None if all(experts) else experts}


@dataclass(frozen=True)
class _SumOfWeights:
    """Whether the weights of a token's experts are made to add up to one."""

    default: bool | None
    """None: they always are; no field says it."""
    field: str = "norm_topk_prob"

    @property
    def fields(self) -> tuple[str, ...]:
        return () if self.default is None else (self.field,)

    def is_one(self, config: Config) -> bool:
        return self.default is None or bool(config.get(self.field, self.default))

    def said(self, is_one: bool) -> Config:
        return {} if self.default is None else {self.field: is_one}


class Normalised(_SumOfWeights):
    """The weights are a softmax over all experts."""

    def to_megatron(self, config: Config) -> dict[str, Any]:
        alone = self.is_one(config) and config.get("num_experts_per_tok") == 1
        return {"moe_router_pre_softmax": not self.is_one(config)} | ({"missing": ("weight one",)} if alone else {})

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return self.said(not arguments.moe_router_pre_softmax)


class NormalisedSigmoid(_SumOfWeights):
    """Scores are sigmoids; megatron-core makes those of a token's experts add up to one, always."""

    def to_megatron(self, config: Config) -> dict[str, Any]:
        # Of one expert alone megatron-core takes the score as it is.
        possible = self.is_one(config) == (config.get("num_experts_per_tok") != 1)
        return {"moe_router_score_function": "sigmoid"} | ({} if possible else {"missing": ("sigmoid sum",)})

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return self.said(arguments.moe_router_topk != 1)


@dataclass(frozen=True)
class SharedExperts:
    """`n_shared_experts` experts that see every token; in the weights they are one MLP."""

    default: int
    field: str = "n_shared_experts"
    size: str = "moe_intermediate_size"
    size_default: int = 0

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        count = config.get(self.field, self.default) or 0
        return {"moe_shared_expert_intermediate_size": count * config.get(self.size, self.size_default) or None}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        size = arguments.moe_ffn_hidden_size or 1
        return {self.field: (arguments.moe_shared_expert_intermediate_size or 0) // size}


@dataclass(frozen=True)
class Groups:
    """Experts are chosen from the best `topk_group` of `n_group` groups; one group is as none."""

    groups: int | None
    best: int | None
    ranked_by: int
    """How many of its experts a group is ranked by; megatron-core: topk over `topk_group`."""
    method: str | None = None
    """Value of `topk_method` that means groups. None: the numbers alone say it."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("n_group", "topk_group", *(("topk_method",) if self.method else ()))

    def to_megatron(self, config: Config) -> dict[str, Any]:
        groups, best = config.get("n_group", self.groups) or 1, config.get("topk_group", self.best) or 1
        if groups == best or (self.method and config.get("topk_method") != self.method):
            return {}
        ranked_by = (config.get("num_experts_per_tok") or 1) // best
        missing = {} if ranked_by == self.ranked_by else {"missing": ("rank of groups",)}
        return {"moe_router_num_groups": groups, "moe_router_group_topk": best, **missing}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        groups, best = arguments.moe_router_num_groups or 1, arguments.moe_router_group_topk or 1
        method = {"topk_method": self.method if groups > 1 else "greedy"} if self.method else {}
        return {"n_group": groups, "topk_group": best, **method}


@dataclass(frozen=True)
class ExpertScale:
    """What the weights of a token's experts are multiplied by; by one is not at all."""

    default: float
    field: str = "routed_scaling_factor"

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        scale = config.get(self.field, self.default)
        return {"moe_router_topk_scaling_factor": None if scale == 1.0 else scale}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {self.field: arguments.moe_router_topk_scaling_factor or 1.0}


@dataclass(frozen=True)
class WindowSwitch:
    """A sliding window for all layers where `use_sliding_window` is true."""

    default: int = 4096
    fields: tuple[str, ...] = ("use_sliding_window", "sliding_window")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        window = config.get("sliding_window", self.default) if config.get("use_sliding_window") else None
        return NO_WINDOW if window is None else {**NO_WINDOW, "window_size": (window - 1, 0)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        window = arguments.window_size and arguments.window_size[0] + 1
        return {"use_sliding_window": window is not None, "sliding_window": window}


@dataclass(frozen=True)
class LatentHeads:
    """Heads of multi-latent attention: as many keys and values as queries, the size is that of a value."""

    default: int
    """Of a value's head."""
    fields: tuple[str, ...] = ("v_head_dim", "num_key_value_heads")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        # What a file says of key-value heads means nothing here.
        value, heads = config.get("v_head_dim") or self.default, config["num_attention_heads"]
        return {"v_head_dim": value, "kv_channels": value, "num_query_groups": heads, "qk_layernorm": True}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {"v_head_dim": arguments.v_head_dim, "num_key_value_heads": arguments.num_query_groups}


@dataclass(frozen=True)
class LatentRope:
    """Rotary embedding of latent attention: plain, or scaled by YaRN."""

    fields: tuple[str, ...] = ("rope_parameters", "rope_scaling", "rope_theta")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        kind = rope.get("rope_type") or rope.get("type") or "default"
        theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
        if kind == "default":
            return {"rotary_base": theta}
        if kind != "yarn":
            return {"rotary_base": theta, "missing": (f"latent rope {kind}",)}
        scaled = yarn(rope, config)
        truncated = {} if rope.get("truncate", True) else {"missing": ("yarn untruncated",)}
        return {"rotary_base": theta, **scaled, **truncated}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {"rope_parameters": {"rope_theta": arguments.rotary_base, **yarn_entry(arguments.yarn)}}


class RopeOfSize(Rope):
    """Rotary embedding of which `rotary_dim` may say how much of a head it rotates."""

    def to_megatron(self, config: Config) -> dict[str, Any]:
        """As every rotary embedding, with the part of a head in the spelling that they have."""
        size, head = config.get("rotary_dim"), config.get("head_dim")
        return super().to_megatron(config | ({"partial_rotary_factor": size / head} if size and head else {}))
