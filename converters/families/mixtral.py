"""Mixtral: Mistral's attention, experts in every layer, their weights normalised."""

from converters.config_table import HeadSize, KeyValueHeads, Same
from converters.families._common import ATTENTION, ATTENTION_NORM, EMBEDDINGS, RECOMPUTABLE, SHARED, changed, norm
from converters.families._moe import MOE_NORM, experts, router
from converters.family import Family
from converters.moe_table import Normalised
from converters.rope_table import Rope
from converters.window_table import Window

_MOE = "model.layers.{layer}.block_sparse_moe."

FAMILY = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    config=(
        *changed(SHARED, Same("rms_norm_eps", "norm_epsilon", default=1e-5), Rope(base=1e6)),
        HeadSize(),
        KeyValueHeads(default=8),
        Window(default=None),
        Same("intermediate_size", "moe_ffn_hidden_size"),
        Same("num_local_experts", "num_moe_experts", default=8),
        Same("num_experts_per_tok", "moe_router_topk", default=2),
        Normalised(None),
    ),
    rules=(
        *EMBEDDINGS,
        norm(ATTENTION_NORM, "input_layernorm.weight"),
        *ATTENTION,
        MOE_NORM,
        router(_MOE + "gate.weight"),
        *experts(_MOE, gate="w1", up="w3", down="w2"),
    ),
    recomputable=RECOMPUTABLE,
)
