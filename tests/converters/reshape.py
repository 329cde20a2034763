"""Megatron's tensors made with torch alone, from the definition of its layers: what the rules are held against."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


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
        return torch.cat((gate, up), dim=1) if gate is not None and up is not None else None

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
        layer + "self_attention.linear_qkv.layer_norm_weight": stack("input_layernorm.weight"),
        layer + "self_attention.linear_qkv.weight": fused("weight"),
        layer + "self_attention.linear_qkv.bias": fused("bias"),
        layer + "self_attention.linear_proj.weight": stack("self_attn.o_proj.weight"),
        layer + "self_attention.linear_proj.bias": stack("self_attn.o_proj.bias"),
        layer + "self_attention.q_layernorm.weight": stack("self_attn.q_norm.weight"),
        layer + "self_attention.k_layernorm.weight": stack("self_attn.k_norm.weight"),
        layer + "mlp.linear_fc1.layer_norm_weight": stack("post_attention_layernorm.weight"),
        layer + "mlp.linear_fc1.weight": gated("weight"),
        layer + "mlp.linear_fc1.bias": gated("bias"),
        layer + "mlp.linear_fc2.weight": stack("mlp.down_proj.weight"),
        layer + "mlp.linear_fc2.bias": stack("mlp.down_proj.bias"),
    }
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}
