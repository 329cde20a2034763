"""Rows of the table Hugging Face config ⇄ Megatron arguments.

A row reads its fields of `config.json` into Megatron's own arguments and writes them back. What
megatron-core cannot express is refused here, with the field, the value and what is possible: a model
that trains with another position embedding than its own would be worse than none.
"""

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
    mscale: float | None = None
    mscale_all_dim: float | None = None
    correction_range_round_to_int: bool = True


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
    window_size: tuple[int, int] | None = None
    """Tokens visible to the (left, right) besides the token itself."""
    window_attn_skip_freq: list[int] | None = None
    """For each layer 1 (windowed) or 0 (full attention). None: every layer is windowed."""

    num_moe_experts: int | None = None
    """Experts of each MoE layer. None: a dense model."""
    moe_ffn_hidden_size: int | None = None
    """Of one expert."""
    moe_shared_expert_intermediate_size: int | None = None
    """Of all shared experts together, which are one MLP. None: there are none."""
    moe_shared_expert_gate: bool = False
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
    moe_aux_loss_coeff: float = 0.0
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
    missing: tuple[str, ...] = ()
    """Names in `converters.missing` of what megatron-core lacks for this model: it converts, but is not trained."""

    @property
    def swiglu(self) -> bool:
        return self.gated_linear_unit and self.activation == "silu"

    @property
    def homogeneous(self) -> bool:
        """Whether all layers are of one kind: megatron-core stacks their tensors then."""
        return self.moe_layer_freq is None

    def layers(self, kind: Layers) -> list[int]:
        """The layers that are dense, have experts, or all."""
        with_experts = self.moe_layer_freq or [int(self.num_moe_experts is not None)] * self.num_layers
        wanted = {"all": (0, 1), "dense": (0,), "moe": (1,)}[kind]
        return [layer for layer, experts in enumerate(with_experts) if experts in wanted]

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
        return {self.megatron: self.default if value is None else value}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        return {self.hf: getattr(arguments, self.megatron)}


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
        value = config.get("head_dim") or self.default
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
        groups = config.get("num_key_value_heads") or self.default or heads
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
    fields: tuple[str, ...] = ("attention_bias", "mlp_bias")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        attention = bool(config.get("attention_bias"))
        mlp = self.mlp and bool(config.get("mlp_bias"))
        if mlp and not attention:
            raise UserError(
                "config.json: `mlp_bias` is true and `attention_bias` false; megatron-core has a bias on every linear "
                "layer or on none of the MLP's.",
                "Possible: both true, both false, or attention_bias alone.",
            )
        return {"add_bias_linear": mlp, "add_qkv_bias": attention, "attention_output_bias": attention}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        if arguments.add_qkv_bias != arguments.attention_output_bias or (arguments.add_bias_linear and not self.mlp):
            raise UserError(
                f"add_qkv_bias={arguments.add_qkv_bias}, attention_output_bias={arguments.attention_output_bias}, "
                f"add_bias_linear={arguments.add_bias_linear} cannot be written as this architecture.",
                "Its `attention_bias` is on q, k, v and o together.",
            )
        mlp = {"mlp_bias": arguments.add_bias_linear} if self.mlp else {}
        return {"attention_bias": arguments.add_qkv_bias, **mlp}


NO_SCALING: dict[str, Any] = {
    "use_rope_scaling": False,
    "rope_scaling_factor": 8.0,
    "seq_len_interpolation_factor": None,
    "yarn": None,
}

LLAMA3_FIXED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Constants of `megatron.core…RotaryEmbedding._apply_scaling`, which no argument changes."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: transformers 5's `rope_parameters`, or `rope_theta` with `rope_scaling` as before it."""

    fields: tuple[str, ...] = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        # transformers gives `rope_scaling` precedence where a file has both.
        spelling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        rope = config.get(spelling) or {}
        if any(isinstance(value, dict) for value in rope.values()):
            raise UserError(
                f"config.json: `{spelling}` differs from layer to layer ({', '.join(rope)}).",
                "megatron-core has one rotary embedding for all layers; this architecture needs one entry.",
            )
        partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        if partial not in (None, 1.0):
            raise UserError(
                f"config.json: `partial_rotary_factor` is {partial}.", "These families rotate the whole head: 1.0."
            )
        theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
        return {"rotary_base": theta, "rotary_percent": 1.0, **self._scaling(spelling, rope, config)}

    def _scaling(self, spelling: str, rope: Config, config: Config) -> dict[str, Any]:
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "default":
            return NO_SCALING
        if kind in ("linear", "llama3") and "factor" not in rope:
            raise UserError(f"config.json: `{spelling}` of type {kind!r} has no `factor`.", "Give it.")
        if kind == "linear":
            return {**NO_SCALING, "seq_len_interpolation_factor": rope["factor"]}
        if kind == "llama3":
            _check_llama3(spelling, rope, config)
            return {**NO_SCALING, "use_rope_scaling": True, "rope_scaling_factor": rope["factor"]}
        raise UserError(
            f"config.json: `{spelling}.rope_type` is {kind!r}, which megatron-core's GPT model cannot compute.",
            "Possible: 'default', 'linear', and 'llama3' with "
            + ", ".join(f"{name} {value:g}" for name, value in LLAMA3_FIXED.items())
            + ".",
        )

    def to_hf(self, arguments: MegatronArguments) -> Config:
        rope: Config = {"rope_theta": arguments.rotary_base, "rope_type": "default"}
        if arguments.use_rope_scaling:
            rope |= {"rope_type": "llama3", "factor": arguments.rope_scaling_factor, **LLAMA3_FIXED}
        elif arguments.seq_len_interpolation_factor is not None:
            rope |= {"rope_type": "linear", "factor": arguments.seq_len_interpolation_factor}
        return {"rope_parameters": rope}


def _check_llama3(spelling: str, rope: Config, config: Config) -> None:
    found = {"original_max_position_embeddings": config["max_position_embeddings"], **rope}
    for name, value in LLAMA3_FIXED.items():
        if found.get(name) != value:
            raise UserError(
                f"config.json: `{spelling}.{name}` is {found.get(name)!r}.",
                f"megatron-core's llama3 scaling has it fixed at {value:g}; only `factor` can be chosen.",
            )


NO_BIAS: dict[str, Any] = {"add_bias_linear": False, "add_qkv_bias": False, "attention_output_bias": False}

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
    "moe_aux_loss_coeff": 0.0,
    "mtp_num_layers": 0,
}

NO_LATENT: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": None,
    "qk_head_dim": None,
    "qk_pos_emb_head_dim": None,
    "v_head_dim": None,
}

NO_WINDOW: dict[str, Any] = {"window_size": None, "window_attn_skip_freq": None}


@dataclass(frozen=True)
class Window:
    """One sliding window for every layer: `sliding_window` W sees W tokens, itself among them."""

    default: int | None
    fields: tuple[str, ...] = ("sliding_window",)

    def to_megatron(self, config: Config) -> dict[str, Any]:
        window = config.get("sliding_window", self.default)
        return NO_WINDOW if window is None else {**NO_WINDOW, "window_size": (window - 1, 0)}

    def to_hf(self, arguments: MegatronArguments) -> Config:
        if arguments.window_attn_skip_freq is not None:
            raise UserError(
                f"window_attn_skip_freq={arguments.window_attn_skip_freq} cannot be written as this architecture.",
                "It has one window for all layers.",
            )
        return {"sliding_window": arguments.window_size and arguments.window_size[0] + 1}


@dataclass(frozen=True)
class WindowByLayer:
    """A sliding window for some layers: `layer_types`, or all from `max_window_layers` on."""

    default: int = 4096
    default_first: int = 28
    fields: tuple[str, ...] = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

    def to_megatron(self, config: Config) -> dict[str, Any]:
        window = config.get("sliding_window", self.default) if config.get("use_sliding_window") else None
        windowed = self._windowed(config, window)
        if not any(windowed):
            return NO_WINDOW
        if window is None:
            raise UserError(
                "config.json: `layer_types` has sliding_attention, but use_sliding_window or sliding_window is off.",
                "Set both, or make every layer full_attention.",
            )
        return {"window_size": (window - 1, 0), "window_attn_skip_freq": None if all(windowed) else windowed}

    def _windowed(self, config: Config, window: int | None) -> list[int]:
        layers = config["num_hidden_layers"]
        first = config.get("max_window_layers", self.default_first)
        kinds = config.get("layer_types") or [
            "sliding_attention" if window is not None and layer >= first else "full_attention"
            for layer in range(layers)
        ]
        wrong = set(kinds) - {"full_attention", "sliding_attention"}
        if wrong or len(kinds) != layers:
            raise UserError(
                f"config.json: `layer_types` has {len(kinds)} entries for {layers} layers"
                + (f", among them {', '.join(sorted(wrong))}." if wrong else "."),
                "Possible: one of full_attention and sliding_attention for each layer.",
            )
        return [int(kind == "sliding_attention") for kind in kinds]

    def to_hf(self, arguments: MegatronArguments) -> Config:
        if arguments.window_size is None:
            return {"use_sliding_window": False, "sliding_window": None}
        windowed = arguments.window_attn_skip_freq or [1] * arguments.num_layers
        return {
            "use_sliding_window": True,
            "sliding_window": arguments.window_size[0] + 1,
            "layer_types": ["sliding_attention" if on else "full_attention" for on in windowed],
            "max_window_layers": next(layer for layer, on in enumerate(windowed) if on),
        }
