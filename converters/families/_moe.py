"""What families with experts share: Llama's attention and, in each layer, a dense MLP or experts.

The three-dimensional tensors in which transformers 5 keeps all experts of a layer are the second form:
most families write one tensor for each expert.
"""

import dataclasses

from converters.config_table import Fixed, Row, Same
from converters.families._common import MLP, MLP_NORM, norm
from converters.moe_table import ExpertScale, FirstLayersDense, Groups, NormalisedSigmoid, SharedExperts, Spelled
from converters.rules import CONCATENATE, Rule, hf

_MEGATRON = "decoder.layers.mlp."

APART, FUSED = "experts apart", "experts fused"
"""Forms of a folder: a tensor for each expert, or one for all of a layer's."""

MOE_NORM = dataclasses.replace(norm("pre_mlp_layernorm.weight", "post_attention_layernorm.weight"), layers="moe")

DENSE_LAYERS: tuple[Rule, ...] = tuple(
    dataclasses.replace(rule, layers="dense") for rule in (norm(MLP_NORM, "post_attention_layernorm.weight"), *MLP)
)


def experts(
    moe: str = "model.layers.{layer}.mlp.", gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[Rule, ...]:
    """The experts of a layer, apart as `gate`, `up` and `down`, or fused."""
    one, fused = moe + "experts.{expert}.", moe + "experts."
    return (
        Rule(
            _MEGATRON + "experts.experts.linear_fc1.weight",
            (
                hf(f"{one}{gate}.weight", "expert_ffn", "hidden"),
                hf(f"{one}{up}.weight", "expert_ffn", "hidden"),
            ),
            CONCATENATE,
            fragments=2,
            layers="moe",
            form=APART,
        ),
        Rule(
            _MEGATRON + "experts.experts.linear_fc2.weight",
            (hf(f"{one}{down}.weight", "hidden", "expert_ffn"),),
            layers="moe",
            form=APART,
        ),
        Rule(
            _MEGATRON + "experts.experts.linear_fc1.weight",
            (hf(fused + "gate_up_proj", "{expert}", "expert_gate_up", "hidden"),),
            fragments=2,
            layers="moe",
            form=FUSED,
        ),
        Rule(
            _MEGATRON + "experts.experts.linear_fc2.weight",
            (hf(fused + "down_proj", "{expert}", "hidden", "expert_ffn"),),
            layers="moe",
            form=FUSED,
        ),
    )


def router(name: str = "model.layers.{layer}.mlp.gate.weight") -> Rule:
    """The matrix that scores experts."""
    return Rule(_MEGATRON + "router.weight", (hf(name, "expert", "hidden"),), layers="moe")


def expert_bias(name: str) -> Rule:
    """What is added to the scores when experts are chosen; fp32 whatever the weights are."""
    return Rule(
        _MEGATRON + "router.expert_bias",
        (hf(name, "expert"),),
        layers="moe",
        when="moe_router_enable_expert_bias",
        keeps_dtype=True,
    )


def shared_experts(name: str) -> tuple[Rule, ...]:
    """The MLP beside the experts, which sees every token."""
    mlp = f"model.layers.{{layer}}.mlp.{name}."
    return (
        Rule(
            _MEGATRON + "shared_experts.linear_fc1.weight",
            (
                hf(mlp + "gate_proj.weight", "shared_ffn", "hidden"),
                hf(mlp + "up_proj.weight", "shared_ffn", "hidden"),
            ),
            CONCATENATE,
            fragments=2,
            layers="moe",
            when="moe_shared_expert_intermediate_size",
        ),
        Rule(
            _MEGATRON + "shared_experts.linear_fc2.weight",
            (hf(mlp + "down_proj.weight", "hidden", "shared_ffn"),),
            layers="moe",
            when="moe_shared_expert_intermediate_size",
        ),
    )


def shared_gate() -> Rule:
    """What the shared expert of Qwen's models is multiplied by, token by token."""
    return Rule(
        _MEGATRON + "shared_experts.gate_weight",
        (hf("model.layers.{layer}.mlp.shared_expert_gate.weight", "one", "hidden"),),
        layers="moe",
    )


DEEPSEEK_MLP: tuple[Rule, ...] = (
    *DENSE_LAYERS,
    MOE_NORM,
    router(),
    expert_bias("model.layers.{layer}.mlp.gate.e_score_correction_bias"),
    *experts(),
    *shared_experts("shared_experts"),
)
"""Of DeepSeek-V3 and those that took it over: sigmoid scores with a bias for each expert, and shared experts."""


def deepseek_config(
    *, experts: int, size: int, dense_layers: int, groups: int, best_groups: int, scale: float
) -> tuple[Row, ...]:
    """What their config.json says of experts and MTP layers, each with the default of one architecture."""
    return (
        Spelled(("n_routed_experts", "num_local_experts"), "num_moe_experts", default=experts),
        Same("moe_intermediate_size", "moe_ffn_hidden_size", default=size),
        Same("num_experts_per_tok", "moe_router_topk", default=8),
        SharedExperts(default=1, size_default=size),
        FirstLayersDense(default=dense_layers),
        NormalisedSigmoid(default=True),
        Groups(groups=groups, best=best_groups, ranked_by=2),
        ExpertScale(default=scale),
        Spelled(("num_nextn_predict_layers", "num_mtp_layers"), "mtp_num_layers", default=1),
        Fixed({"moe_router_enable_expert_bias": True}),
    )
