"""Nemotron-H, Nano 2 and 3: Mamba 2's layers, attention without positions, and MLPs or experts of squared ReLU."""

from converters.config_table import Choice, Fixed, KeyValueHeads, Only, Opposite, Same
from converters.families._common import ATTENTION_NORM, MLP_NORM
from converters.families._mamba import MAMBA_CONFIG, MAMBA_ENDS, MAMBA_LAYERS, MIXER, before
from converters.families._moe import APART, FUSED
from converters.family import Family
from converters.hybrid_table import Pattern, WithExperts
from converters.moe_table import ExpertScale, Groups, Needs, NormalisedSigmoid, Spelled
from converters.rules import INTERLEAVE_GROUPS, Rule, hf

_MEGATRON = "decoder.layers."
_MLP = _MEGATRON + "mlp."
_EXPERTS = _MLP + "experts.experts."

_ATTENTION = (
    before(ATTENTION_NORM, "attention"),
    Rule(
        _MEGATRON + "self_attention.linear_qkv.weight",
        (
            hf(MIXER + "q_proj.weight", "query", "hidden"),
            hf(MIXER + "k_proj.weight", "key_value", "hidden"),
            hf(MIXER + "v_proj.weight", "key_value", "hidden"),
        ),
        INTERLEAVE_GROUPS,
        layers="attention",
    ),
    Rule(
        _MEGATRON + "self_attention.linear_proj.weight",
        (hf(MIXER + "o_proj.weight", "hidden", "query"),),
        layers="attention",
    ),
)

_DENSE = (
    before(MLP_NORM, "dense"),
    Rule(_MLP + "linear_fc1.weight", (hf(MIXER + "up_proj.weight", "ffn", "hidden"),), layers="dense"),
    Rule(_MLP + "linear_fc2.weight", (hf(MIXER + "down_proj.weight", "hidden", "ffn"),), layers="dense"),
)


def _moe(megatron: str, name: str, *dimensions: str, when: str | None = None, form: str | None = None) -> Rule:
    return Rule(_MLP + megatron, (hf(MIXER + name, *dimensions),), layers="moe", when=when, form=form)


_UP, _DOWN = ("expert_ffn", "expert_in"), ("expert_in", "expert_ffn")

_MOE = (
    before("pre_mlp_layernorm.weight", "moe"),
    _moe("router.weight", "gate.weight", "expert", "hidden"),
    Rule(
        _MLP + "router.expert_bias",
        (hf(MIXER + "gate.e_score_correction_bias", "expert"),),
        layers="moe",
        keeps_dtype=True,
    ),
    _moe("experts.experts.linear_fc1.weight", "experts.{expert}.up_proj.weight", *_UP, form=APART),
    _moe("experts.experts.linear_fc2.weight", "experts.{expert}.down_proj.weight", *_DOWN, form=APART),
    _moe("experts.experts.linear_fc1.weight", "experts.up_proj", "{expert}", *_UP, form=FUSED),
    _moe("experts.experts.linear_fc2.weight", "experts.down_proj", "{expert}", *_DOWN, form=FUSED),
    _moe("shared_experts.linear_fc1.weight", "shared_experts.up_proj.weight", "shared_ffn", "hidden"),
    _moe("shared_experts.linear_fc2.weight", "shared_experts.down_proj.weight", "hidden", "shared_ffn"),
    _moe("fc1_latent_proj.weight", "fc1_latent_proj.weight", "expert_in", "hidden", when="moe_latent_size"),
    _moe("fc2_latent_proj.weight", "fc2_latent_proj.weight", "hidden", "expert_in", when="moe_latent_size"),
)

FAMILY = Family(
    name="nemotron_h",
    architectures=("NemotronHForCausalLM",),
    config=(
        Pattern(),
        Same("hidden_size", "hidden_size", default=4096),
        Same("intermediate_size", "ffn_hidden_size", default=21504),
        Same("num_attention_heads", "num_attention_heads", default=32),
        KeyValueHeads(default=8),
        Spelled(("head_dim", "attention_head_dim"), "kv_channels", default=128),
        Same("max_position_embeddings", "max_position_embeddings", default=4096),
        Same("vocab_size", "vocab_size", default=131072),
        Same("layer_norm_epsilon", "norm_epsilon", default=1e-5),
        Same("initializer_range", "init_method_std", default=0.02),
        Same("attention_dropout", "attention_dropout", default=0.0),
        Opposite("tie_word_embeddings", "untie_embeddings_and_output_weights", default=False),
        Choice("mlp_hidden_act", "activation", {"relu2": "squared_relu"}),
        Only("mamba_hidden_act", "silu", "megatron-core's Mamba layers have this activation"),
        Only("attention_bias", False, "transformers reads the field and has no bias there"),
        Only("mlp_bias", False, "megatron-core has a bias on every linear layer or on none of the MLP's"),
        Only("mamba_proj_bias", False, "the projections of megatron-core's Mamba layers have no bias"),
        Only("sliding_window", None, "transformers reads the field and has no window there"),
        Same("conv_kernel", "mamba_conv_kernel_dim", default=4),
        Same("ssm_state_size", "mamba_state_dim", default=128),
        Same("mamba_head_dim", "mamba_head_dim", default=64),
        Same("mamba_num_heads", "mamba_num_heads", default=128),
        Same("n_groups", "mamba_num_groups", default=8),
        *MAMBA_CONFIG,
        WithExperts(
            Spelled(("n_routed_experts", "num_local_experts"), "num_moe_experts", default=8),
            Same("moe_intermediate_size", "moe_ffn_hidden_size", default=7688),
            Same("moe_shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", default=7688),
            Same("num_experts_per_tok", "moe_router_topk", default=2),
            NormalisedSigmoid(default=True),
            Groups(groups=1, best=1, ranked_by=2),
            ExpertScale(default=1.0),
            Spelled(("moe_latent_size",), "moe_latent_size", default=None),
            Fixed({"moe_router_enable_expert_bias": True}),
        ),
        Fixed({"gated_linear_unit": False, "position_embedding_type": "none"}),
        Needs("mamba"),
    ),
    rules=(*MAMBA_ENDS, *MAMBA_LAYERS, *_ATTENTION, *_DENSE, *_MOE),
)
