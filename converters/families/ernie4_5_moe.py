"""ERNIE 4.5 with experts: chosen by softmax and a bias per expert, which megatron-core has for sigmoids only."""

import dataclasses

from converters.config_table import Fixed, HeadSize, KeyValueHeads, Only, Opposite, Same
from converters.families._common import ATTENTION, ATTENTION_NORM, EMBEDDINGS, RECOMPUTABLE, SHARED, changed, norm
from converters.families._moe import DENSE_LAYERS, MOE_NORM, expert_bias, experts, router, shared_experts
from converters.family import Family
from converters.moe_table import LayersInRange, Needs, SharedExperts, Spelled
from converters.rope_table import Rope
from converters.rules import hf

_BIAS = "model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"

FAMILY = Family(
    name="ernie4_5_moe",
    architectures=("Ernie4_5_MoeForCausalLM",),
    config=(
        *changed(
            SHARED,
            Same("rms_norm_eps", "norm_epsilon", default=1e-5),
            Opposite("tie_word_embeddings", "untie_embeddings_and_output_weights", default=True),
            Rope(base=500_000.0, neighbours=True),
        ),
        HeadSize(),
        KeyValueHeads(default=4),
        Only("use_bias", False, "experts beside shared ones have no bias in megatron-core"),
        Spelled(("moe_num_experts", "num_experts"), "num_moe_experts", default=64),
        Same("moe_intermediate_size", "moe_ffn_hidden_size", default=1536),
        Spelled(("moe_k", "num_experts_per_tok"), "moe_router_topk", default=6),
        SharedExperts(field="moe_num_shared_experts", default=2, size_default=1536),
        LayersInRange(),
        Fixed({"moe_router_enable_expert_bias": True}),
        Needs("softmax with bias"),
    ),
    rules=(
        *EMBEDDINGS,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        *ATTENTION,
        *DENSE_LAYERS,
        MOE_NORM,
        router(),
        dataclasses.replace(expert_bias(_BIAS), sources=(hf(_BIAS, "one", "expert"),)),
        *experts(),
        *shared_experts("shared_experts"),
    ),
    recomputable=RECOMPUTABLE,
)
