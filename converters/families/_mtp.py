"""Layers that predict further tokens (MTP), as DeepSeek-V3 and GLM-4.5 have them: numbered on after the last layer."""

import dataclasses

from converters.rules import Rule, hf


def mtp(layer: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of an MTP layer, which has a decoder layer of its own: the model's with experts."""
    own, name = "mtp.layers.{mtp}.", "model.layers.{layer}."
    return (
        Rule(own + "enorm.weight", (hf(name + "enorm.weight", "hidden"),)),
        Rule(own + "hnorm.weight", (hf(name + "hnorm.weight", "hidden"),)),
        Rule(own + "eh_proj.weight", (hf(name + "eh_proj.weight", "hidden", "two_hidden"),)),
        Rule(own + "final_layernorm.weight", (hf(name + "shared_head.norm.weight", "hidden"),)),
        *(
            dataclasses.replace(rule, megatron=rule.megatron.replace("decoder.layers.", own + "transformer_layer."))
            for rule in layer
            if rule.layers != "dense"
        ),
    )


MTP_COPIES = (
    ("model.layers.{layer}.embed_tokens.weight", "model.embed_tokens.weight"),
    ("model.layers.{layer}.shared_head.head.weight", "lm_head.weight"),
)
"""An MTP layer's file holds embedding and output layer again."""
