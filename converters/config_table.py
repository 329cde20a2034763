"""Rows of the table Hugging Face config ⇄ Megatron arguments.

A row reads its fields of `config.json` into Megatron's own arguments and writes them back. What
megatron-core cannot express is refused here, with the field, the value and what is possible: a model
that trains with another position embedding than its own would be worse than none.
"""

import functools
import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from converters.rules import Layers
from swift_mega.base.errors import UserError

Config = dict[str, Any]
"""The content of a `config.json`."""


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """How YaRN scales positions; names are megatron-core's."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    correction_range_round_to_int: bool = True


PATTERN: dict[str, Layers] = {"M": "mamba", "*": "attention", "-": "dense", "E": "moe"}
"""megatron-core's letters for the layers of a hybrid model."""


@dataclass(frozen=True, kw_only=True)
class MegatronArguments:
    """What Megatron-Core has to know to build the model, under Megatron's own argument names."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    """Key-value heads."""
    kv_channels: int
    """Size of one head."""
    max_position_embeddings: int
    vocab_size: int
    """Rows of the embedding before padding."""
    norm_epsilon: float
    init_method_std: float = 0.02
    attention_dropout: float = 0.0
    normalization: str = "RMSNorm"
    gated_linear_unit: bool = True
    activation: str = "silu"
    untie_embeddings_and_output_weights: bool = True
    add_bias_linear: bool = False
    """A bias on every linear layer, attention and MLP."""
    add_qkv_bias: bool = False
    attention_output_bias: bool = False
    """A bias on the attention's output projection; megatron-core knows it only as part of add_bias_linear."""
    qk_layernorm: bool = False
    position_embedding_type: str = "rope"
    rotary_base: float = 10000.0
    rotary_percent: float = 1.0
    use_rope_scaling: bool = False
    """Llama 3's scaling, with megatron-core's fixed low 1, high 4, original 8192."""
    rope_scaling_factor: float = 8.0
    seq_len_interpolation_factor: float | None = None
    """Linear scaling: positions are divided by it."""
    dynamic_rope_factor: float | None = None
    """Scaling of the rotary base for sequences beyond max_position_embeddings, which training refuses anyway."""
    window_size: tuple[int, int] | None = None
    """Tokens visible to the (left, right) besides the token itself."""
    window_attn_skip_freq: list[int] | None = None
    """For each layer 1 (windowed) or 0 (full attention). None: every layer is windowed."""
    layernorm_zero_centered_gamma: bool = False
    """Norm weights are stored minus one."""
    norm_placement: str = "pre"
    """Norms `pre` attention and MLP, `post` (on what they add to the residual stream), or `both`."""
    qk_layernorm_whole: bool = False
    """The norm of queries and of keys is over all heads together, not over each."""
    rotary_local_base: float | None = None
    """Rotary base of the windowed layers, which then have no scaling. None: the same as of the others."""
    no_rope_freq: list[int] | None = None
    """For each layer 1 (no rotary embedding) or 0."""
    softmax_scale: float | None = None
    """Factor of the attention scores. None: 1/√kv_channels."""
    attention_softcap: float | None = None
    """c in c·tanh(score/c)."""
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """Of what attention and MLP add to the residual stream."""
    logits_divisor: float = 1.0
    logits_softcap: float | None = None
    """c in c·tanh(logit/c)."""

    num_moe_experts: int | None = None
    """Experts of each MoE layer. None: a dense model."""
    moe_ffn_hidden_size: int | None = None
    """Of one expert."""
    moe_shared_expert_intermediate_size: int | None = None
    """Of all shared experts together, which are one MLP. None: there are none."""
    moe_shared_expert_gate: bool = False
    moe_latent_size: int | None = None
    """Of what experts read and write, which a matrix before all of them and one behind make of the hidden size."""
    moe_layer_freq: list[int] | None = None
    """For each layer 1 (experts) or 0 (dense). None: all layers are alike."""
    moe_router_topk: int = 2
    moe_router_score_function: str = "softmax"
    moe_router_pre_softmax: bool = False
    """Softmax over all experts before the best are taken, so that their weights do not add up to one."""
    moe_router_topk_scaling_factor: float | None = None
    moe_router_num_groups: int | None = None
    moe_router_group_topk: int | None = None
    moe_router_enable_expert_bias: bool = False
    """A bias of each expert that counts when experts are chosen and not in their weights; always fp32."""
    softmax_type: str = "vanilla"
    """`learnable`: each head has a score of its own for attending to nothing."""
    glu_linear_offset: float = 0.0
    """Added to what the gate multiplies."""
    activation_func_clamp_value: float | None = None
    """Limit of gate and up before the activation."""
    q_lora_rank: int | None = None
    """Of the query in multi-latent attention. None: the query is not compressed."""
    kv_lora_rank: int | None = None
    """Of key and value in multi-latent attention. None: there is no such attention."""
    qk_head_dim: int | None = None
    """Of a query or key head in multi-latent attention, its part without rotation."""
    qk_pos_emb_head_dim: int | None = None
    """Its rotated part."""
    v_head_dim: int | None = None
    rotary_interleaved: bool = False
    """Rotate neighbours instead of halves."""
    yarn: Yarn | None = None
    """Scaling of positions by YaRN."""
    mtp_num_layers: int = 0
    """Layers after the last that predict further tokens."""
    attention_output_gate: bool = False
    """What attention gives back is multiplied by the sigmoid of a gate, which the query's projection makes besides."""
    linear_attention_freq: list[int] | None = None
    """For each layer 1 (a gated delta net in the place of attention) or 0. None: attention in every layer."""
    linear_conv_kernel_dim: int | None = None
    linear_key_head_dim: int | None = None
    linear_value_head_dim: int | None = None
    linear_num_key_heads: int | None = None
    linear_num_value_heads: int | None = None
    hybrid_override_pattern: str | None = None
    """A letter for each layer that is one thing only, as `PATTERN` has them. None: attention and MLP in every layer."""
    mamba_conv_kernel_dim: int | None = None
    mamba_state_dim: int | None = None
    mamba_head_dim: int | None = None
    mamba_num_heads: int | None = None
    mamba_num_groups: int | None = None
    missing: tuple[str, ...] = ()
    """Names in `converters.missing` of what megatron-core lacks for this model: it converts, but is not trained."""

    @property
    def swiglu(self) -> bool:
        return self.gated_linear_unit and self.activation == "silu"

    @property
    def plain_query(self) -> bool:
        """Whether latent attention has a query that is not made of a latent."""
        return self.kv_lora_rank is not None and self.q_lora_rank is None

    @property
    def homogeneous(self) -> bool:
        """Whether all layers are of one kind: megatron-core stacks their tensors then."""
        differing = (self.moe_layer_freq, self.linear_attention_freq, self.hybrid_override_pattern)
        return all(kinds is None for kinds in differing)

    @property
    def kinds(self) -> list[set[Layers]]:
        """For each layer everything that it is."""
        if self.hybrid_override_pattern is not None:
            return [{"all", PATTERN[letter]} for letter in self.hybrid_override_pattern]
        linear = self.linear_attention_freq or [0] * self.num_layers
        experts = self.moe_layer_freq or [int(self.num_moe_experts is not None)] * self.num_layers
        return [
            {"all", "linear attention" if is_linear else "attention", "moe" if has_experts else "dense"}
            for is_linear, has_experts in zip(linear, experts, strict=True)
        ]

    def layers(self, kind: Layers) -> list[int]:
        """The layers of one kind."""
        return [layer for layer, kinds in enumerate(self.kinds) if kind in kinds]

    @property
    def mtp_layers(self) -> range:
        """Their numbers in Hugging Face's files, which go on after the decoder's."""
        return range(self.num_layers, self.num_layers + self.mtp_num_layers)


class Row(Protocol):
    """One line of the table."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of `config.json` this row owns, in every spelling."""

    def to_megatron(self, config: Config) -> dict[str, Any]: ...

    def to_hf(self, arguments: MegatronArguments) -> Config: ...


REQUIRED = object()


@functools.cache
def _kinds() -> dict[str, type | None]:
    """Megatron argument → int or float; None: no number."""
    hints = typing.get_type_hints(MegatronArguments)
    kinds = {name: {hint, *typing.get_args(hint)} for name, hint in hints.items()}
    return {name: next((kind for kind in (int, float) if kind in found), None) for name, found in kinds.items()}


def number(field: str, value: Any, kind: type | None = int, least: int = 0) -> Any:
    """`value` of a field of config.json, after checking that it is a number.

    Args:
        kind: int for sizes and counts; float for any finite number; None checks nothing.
        least: smallest size or count.

    Raises:
        UserError: it is none; names field and value.
    """
    if kind is None:
        return value
    found = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not found or (kind is int and (value != int(value) or value < least)):
        raise UserError(
            f"config.json: `{field}` is {value!r}.",
            f"Possible: a whole number from {least} on." if kind is int else "Possible: a number.",
        )
    return int(value) if kind is int else value


FORMS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(
        (
            *("sliding_window", "max_window_layers", "decoder_sparse_step", "first_k_dense_replace"),
            *("n_group", "topk_group", "moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
        ),
        (int, "a whole number"),
    ),
    **dict.fromkeys(
        ("rope_theta", "rope_local_base_freq", "partial_rotary_factor", "query_pre_attn_scalar"),
        ((int, float), "a number"),
    ),
    **dict.fromkeys(("layer_types", "mlp_only_layers", "moe_layers"), (list, "a list with layers")),
    "layers_block_type": ((list, str), "a list with layers, or a pattern"),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), (dict, "an object with fields of its own")),
}
"""Field of config.json that rows compute with → its JSON type, and how that is called."""


def check_forms(fields: Iterable[str], config: Config) -> None:
    """Raises:
    UserError: one of `fields` is of another type than rows compute with; null means that it is absent.
    """
    for field in fields:
        if field in FORMS and config.get(field) is not None and not isinstance(config[field], FORMS[field][0]):
            raise UserError(f"config.json: `{field}` is {config[field]!r}.", f"Possible: {FORMS[field][1]}.")


@dataclass(frozen=True)
class Same:
    """The same value under two names."""

    hf: str
    megatron: str
    default: Any = REQUIRED

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.hf,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        value = config.get(self.hf)
        if value is None and self.default is REQUIRED:
            raise UserError(f"config.json has no `{self.hf}`.", "Take config.json from the model's own folder.")
        if value is None:
            return {self.megatron: self.default}
        least = 1 if self.default is REQUIRED else 0
        return {self.megatron: number(self.hf, value, _kinds()[self.megatron], least)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {self.hf: getattr(arguments, self.megatron)}


@dataclass(frozen=True)
class Nullable:
    """The same value under two names, where null is a value too: only an absent field means the default."""

    hf: str
    megatron: str
    default: Any

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.hf,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        value = config.get(self.hf, self.default)
        return {self.megatron: None if value is None else number(self.hf, value, _kinds()[self.megatron])}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {self.hf: getattr(arguments, self.megatron)}


@dataclass(frozen=True)
class Choice:
    """One of a few names, called differently on both sides."""

    hf: str
    megatron: str
    names: dict[str, str]
    """Hugging Face's name → Megatron's; the first is the default."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.hf,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        found = config.get(self.hf) or next(iter(self.names))
        if found not in self.names:
            raise UserError(
                f"config.json: `{self.hf}` is {found!r}, which this architecture does not have here.",
                f"Possible here: {', '.join(map(repr, self.names))}.",
            )
        return {self.megatron: self.names[found]}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        found = getattr(arguments, self.megatron)
        names = [name for name, megatron in self.names.items() if megatron == found]
        return {self.hf: names[0]} if names else {}


@dataclass(frozen=True)
class Opposite:
    """True on one side is false on the other."""

    hf: str
    megatron: str
    default: bool

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.hf,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        return {self.megatron: not config.get(self.hf, self.default)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {self.hf: not getattr(arguments, self.megatron)}


@dataclass(frozen=True)
class Only:
    """A field that must have one value (or be absent), because megatron-core has nothing for another."""

    hf: str
    value: Any
    reason: str

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.hf,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        found = config.get(self.hf)
        if found is not None and found != self.value:
            raise UserError(
                f"config.json: `{self.hf}` is {found!r}; {self.reason}.",
                f"Possible here: {self.value!r} (or no such field).",
            )
        return {}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {self.hf: self.value} if self.value else {}


@dataclass(frozen=True)
class Lacking:
    """A field whose other values need what megatron-core does not have: such a model converts, but is not trained."""

    hf: str
    possible: tuple[Any, ...]
    """Values that megatron-core can compute; an absent field is the first."""
    feature: str
    """Name in `converters.missing`."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.hf,)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        found = config.get(self.hf, self.possible[0])
        return {} if found in self.possible else {"missing": (self.feature,)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {}


@dataclass(frozen=True)
class Fixed:
    """Megatron arguments that the architecture itself decides; no field of `config.json` says them."""

    values: dict[str, Any]
    fields: tuple[str, ...] = ()

    def to_megatron(self, config: Config) -> dict[str, Any]:
        return self.values

    def to_hf(self, arguments: MegatronArguments) -> Config:
        for name, value in self.values.items():
            found = getattr(arguments, name)
            if found != value:
                raise UserError(
                    f"Megatron argument {name}={found!r} cannot be written as this architecture, which has {value!r}.",
                    "Export with the config.json of the architecture that was trained.",
                )
        return {}


@dataclass(frozen=True)
class HeadSize:
    """`head_dim`, else the family's default, else hidden size over heads."""

    default: int | None = None
    fields: tuple[str, ...] = ("head_dim",)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        value = number("head_dim", config.get("head_dim") or self.default or 0)
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        if not value and hidden % heads:
            raise UserError(
                f"config.json: {heads} heads do not divide hidden_size {hidden} and there is no `head_dim`.",
                "Give `head_dim`.",
            )
        return {"kv_channels": value or hidden // heads}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {"head_dim": arguments.kv_channels}


@dataclass(frozen=True)
class KeyValueHeads:
    """`num_key_value_heads`, else the family's default, else as many as query heads."""

    default: int | None = None
    fields: tuple[str, ...] = ("num_key_value_heads",)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        heads = config["num_attention_heads"]
        groups = number("num_key_value_heads", config.get("num_key_value_heads") or self.default or heads)
        if heads % groups:
            raise UserError(
                f"config.json: num_key_value_heads {groups} does not divide num_attention_heads {heads}.",
                f"Possible: {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}.",
            )
        return {"num_query_groups": groups}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {"num_key_value_heads": arguments.num_query_groups}


@dataclass(frozen=True)
class Bias:
    """`attention_bias` is on q, k, v and o; `mlp_bias` (where the family has it) on gate, up and down."""

    mlp: bool
    fields: tuple[str, str, str] = ("attention_bias", "attention_bias", "mlp_bias")
    """Whether q, k and v have a bias, whether o, and whether the MLP."""

    def to_megatron(self, config: Config) -> dict[str, Any]:
        qkv, output, mlp = (bool(config.get(field)) for field in self.fields)
        mlp = self.mlp and mlp
        if mlp and not (qkv and output):
            raise UserError(
                f"config.json: `{self.fields[2]}` is true and `{self.fields[0]}` false; megatron-core has a bias on "
                "every linear layer or on none of the MLP's.",
                f"Possible: both true, both false, or {self.fields[0]} alone.",
            )
        return {"add_bias_linear": mlp, "add_qkv_bias": qkv, "attention_output_bias": output}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        wanted = (arguments.add_qkv_bias, arguments.attention_output_bias, arguments.add_bias_linear)
        written = {field: on for field, on in zip(self.fields, wanted, strict=True) if self.mlp or field != "mlp_bias"}
        if self.to_megatron(written) != dict(
            zip(("add_qkv_bias", "attention_output_bias", "add_bias_linear"), wanted, strict=True)
        ):
            raise UserError(
                f"add_qkv_bias={wanted[0]}, attention_output_bias={wanted[1]}, "
                f"add_bias_linear={wanted[2]} cannot be written as this architecture.",
                f"It has {', '.join(dict.fromkeys(self.fields))} for q, k, v; o; and the MLP.",
            )
        return written


NO_EXPERTS: dict[str, Any] = {
    "num_moe_experts": None,
    "moe_ffn_hidden_size": None,
    "moe_shared_expert_intermediate_size": None,
    "moe_shared_expert_gate": False,
    "moe_layer_freq": None,
    "moe_router_topk": 2,
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": False,
    "moe_router_topk_scaling_factor": None,
    "moe_router_num_groups": None,
    "moe_router_group_topk": None,
    "moe_router_enable_expert_bias": False,
    "mtp_num_layers": 0,
}

NO_LATENT: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": None,
    "qk_head_dim": None,
    "qk_pos_emb_head_dim": None,
    "v_head_dim": None,
}


@dataclass(frozen=True)
class EmbeddingTimesRoot:
    """Embeddings are multiplied by √hidden, which no field of `config.json` says."""

    fields: tuple[str, ...] = ()

    def to_megatron(self, config: Config) -> dict[str, Any]:
        return {"embedding_multiplier": config["hidden_size"] ** 0.5}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {}


@dataclass(frozen=True)
class QueryScalar:
    """Attention scores are divided by the root of `query_pre_attn_scalar`."""

    default: int = 256
    fields: tuple[str, ...] = ("query_pre_attn_scalar",)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        return {"softmax_scale": config.get("query_pre_attn_scalar", self.default) ** -0.5}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        scale = arguments.softmax_scale or arguments.kv_channels**-0.5
        scalar = round(scale**-2, 6)
        return {"query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar}
