"""Megatron's tensors made with torch alone, from the definition of its layers: what the rules are held against."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


_POST = {"post_attention_layernorm": "attention_output_norm", "post_feedforward_layernorm": "mlp_output_norm"}
_BOTH = _POST | {"pre_feedforward_layernorm": "post_attention_layernorm"}
NORMS = {
    "gemma2": _BOTH,
    "gemma3_text": _BOTH,
    "glm4": {"post_self_attn_layernorm": "attention_output_norm", "post_mlp_layernorm": "mlp_output_norm"},
    "olmo2": _POST,
    "olmo3": _POST,
    "exaone4": _POST,
}
"""Model type → its names of norms → Llama's, where Llama has the norm."""


def llama_named(hf: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of another dense model under Llama's names, those that are several in one taken apart."""
    found = {}
    for name, tensor in hf.items():
        parts = name.split(".")
        parts = [NORMS.get(config["model_type"], {}).get(part, part) for part in parts]
        if "qkv_proj" in parts:
            heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
            head = len(tensor) // (heads + 2 * groups)
            split = zip(("q_proj", "k_proj", "v_proj"), (heads * head, groups * head, groups * head), strict=True)
        elif "gate_up_proj" in parts:
            split = zip(("gate_proj", "up_proj"), (len(tensor) // 2,) * 2, strict=True)
        else:
            found[".".join(parts)] = tensor
            continue
        names, rows = zip(*split, strict=True)
        for own, part in zip(names, tensor.split(rows), strict=True):
            found[".".join(own if word in ("qkv_proj", "gate_up_proj") else word for word in parts)] = part
    return found


def reshaped(hf: dict[str, torch.Tensor], layers: int, groups: int, padded: int) -> dict[str, torch.Tensor]:
    """Megatron's tensors by torch alone: per group its queries, its key, its value; gate above up; zeros below."""

    def stack(name: str) -> torch.Tensor | None:
        found = [hf.get(f"model.layers.{layer}.{name}") for layer in range(layers)]
        return torch.stack([tensor for tensor in found if tensor is not None]) if found[0] is not None else None

    def fused(kind: str) -> torch.Tensor | None:
        parts = [stack(f"self_attn.{name}_proj.{kind}") for name in "qkv"]
        if any(part is None for part in parts):
            return None
        by_group = [part.reshape(layers, groups, -1, *part.shape[2:]) for part in parts if part is not None]
        return torch.cat(by_group, dim=2).flatten(1, 2)

    def gated(kind: str) -> torch.Tensor | None:
        gate, up = stack(f"mlp.gate_proj.{kind}"), stack(f"mlp.up_proj.{kind}")
        return torch.cat((gate, up), dim=1) if gate is not None and up is not None else up

    def pad(name: str) -> torch.Tensor | None:
        if name not in hf:
            return None
        rows = hf[name]
        return torch.cat((rows, rows.new_zeros(padded - len(rows), rows.shape[1])))

    layer = "decoder.layers."
    tensors = {
        "embedding.word_embeddings.weight": pad("model.embed_tokens.weight"),
        "output_layer.weight": pad("lm_head.weight"),
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
        "decoder.final_layernorm.bias": hf.get("model.norm.bias"),
        layer + "self_attention.linear_qkv.layer_norm_weight": stack("input_layernorm.weight"),
        layer + "self_attention.linear_qkv.layer_norm_bias": stack("input_layernorm.bias"),
        layer + "self_attention.linear_proj.post_layernorm.weight": stack("attention_output_norm.weight"),
        layer + "self_attention.linear_qkv.weight": fused("weight"),
        layer + "self_attention.linear_qkv.bias": fused("bias"),
        layer + "self_attention.linear_proj.weight": stack("self_attn.o_proj.weight"),
        layer + "self_attention.linear_proj.bias": stack("self_attn.o_proj.bias"),
        layer + "self_attention.q_layernorm.weight": stack("self_attn.q_norm.weight"),
        layer + "self_attention.k_layernorm.weight": stack("self_attn.k_norm.weight"),
        layer + "mlp.linear_fc1.layer_norm_weight": stack("post_attention_layernorm.weight"),
        layer + "mlp.linear_fc1.layer_norm_bias": stack("post_attention_layernorm.bias"),
        layer + "mlp.linear_fc2.post_layernorm.weight": stack("mlp_output_norm.weight"),
        layer + "mlp.linear_fc1.weight": gated("weight"),
        layer + "mlp.linear_fc1.bias": gated("bias"),
        layer + "mlp.linear_fc2.weight": stack("mlp.down_proj.weight"),
        layer + "mlp.linear_fc2.bias": stack("mlp.down_proj.bias"),
    }
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}
