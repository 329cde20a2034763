"""Mamba 2's layers, and what stands before and after a stack of them, in megatron-core's MambaModel."""

from converters.config_table import Only, Row
from converters.families._common import EMBEDDING, OUTPUT, in_parts
from converters.rules import PAD_VOCABULARY, HfTensor, Layers, Rule, hf

_MEGATRON = "decoder.layers."
_LAYER = "backbone.layers.{layer}."
MIXER = _LAYER + "mixer."
"""What a layer consists of besides its norm, whatever kind it is of."""

MAMBA_CONFIG: tuple[Row, ...] = (
    Only("use_bias", False, "the projections of megatron-core's Mamba layers have no bias"),
    Only("use_conv_bias", True, "the convolution of megatron-core's Mamba layers has a bias"),
)


def before(megatron: str, layers: Layers) -> Rule:
    """The norm of what a layer of this kind reads."""
    return Rule(_MEGATRON + megatron, (hf(_LAYER + "norm.weight", "hidden"),), layers=layers)


def _plain(name: str, *dimensions: str, keeps_dtype: bool = False) -> Rule:
    return Rule(f"{_MEGATRON}mixer.{name}", (_tensor(name, *dimensions),), layers="mamba", keeps_dtype=keeps_dtype)


def _tensor(name: str, *dimensions: str) -> HfTensor:
    return hf(MIXER + name, *dimensions)


_CONVOLVED = {"x": "mamba_inner", "B": "mamba_states", "C": "mamba_states"}

MAMBA_LAYERS: tuple[Rule, ...] = (
    before("mixer.in_proj.layer_norm_weight", "mamba"),
    *in_parts(
        "mixer.in_proj.weight",
        _tensor("in_proj.weight", "mamba_in", "hidden"),
        {"z": "mamba_inner", **_CONVOLVED, "dt": "mamba_heads"},
        "mamba",
    ),
    *in_parts(
        "mixer.conv1d.weight", _tensor("conv1d.weight", "mamba_conv", "one", "mamba_kernel"), _CONVOLVED, "mamba"
    ),
    *in_parts("mixer.conv1d.bias", _tensor("conv1d.bias", "mamba_conv"), _CONVOLVED, "mamba"),
    # megatron-core has these two in fp32, whatever the weights are.
    _plain("A_log", "mamba_heads", keeps_dtype=True),
    _plain("D", "mamba_heads", keeps_dtype=True),
    _plain("dt_bias", "mamba_heads"),
    _plain("norm.weight", "mamba_inner"),
    _plain("out_proj.weight", "hidden", "mamba_inner"),
)

MAMBA_ENDS: tuple[Rule, ...] = (
    Rule(EMBEDDING, (hf("backbone.embeddings.weight", "vocab", "hidden"),), PAD_VOCABULARY),
    Rule("decoder.final_norm.weight", (hf("backbone.norm_f.weight", "hidden"),)),
    Rule(
        OUTPUT,
        (hf("lm_head.weight", "vocab", "hidden"),),
        PAD_VOCABULARY,
        when="untie_embeddings_and_output_weights",
    ),
)
