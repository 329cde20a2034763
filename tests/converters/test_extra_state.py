"""The keys of extra states, against those that megatron-core 0.16.1 gives models of TransformerEngine's layers."""

import io

import pytest
import torch

from converters.stores.extra_state import extra_states
from converters.tensors import TensorSpec

LAYER = "decoder.layers.3."
MTP = "mtp.layers.0."


@pytest.mark.parametrize(
    ("key", "shape", "shards"),
    [
        ("decoder.layers.self_attention.linear_qkv.weight", (2, 8, 4), ["0_2", "1_2"]),
        ("decoder.layers.self_attention.q_layernorm.weight", (2, 8), ["0_2", "1_2"]),
        ("decoder.layers.pre_mlp_layernorm.weight", (2, 8), ["0_2", "1_2"]),
        (
            "decoder.layers.mlp.experts.experts.linear_fc1.weight",
            (2, 2, 8, 4),
            ["0.0_2.2", "0.1_2.2", "1.0_2.2", "1.1_2.2"],
        ),
        ("decoder.layers.self_attention.core_attention.softmax_offset", (2, 8), ["0_2", "1_2"]),
        (LAYER + "mlp.experts.experts.linear_fc2.weight", (2, 8, 4), ["0_2", "1_2"]),
        (LAYER + "mlp.shared_experts.linear_fc1.weight", (8, 4), ["0_1"]),
        (LAYER + "self_attention.linear_kv_down_proj.weight", (8, 4), ["0_1"]),
        (LAYER + "self_attention.in_proj.weight.query", (8, 4), ["0_1"]),
        (LAYER + "mlp.fc1_latent_proj.weight", (8, 4), ["0_1"]),
        (LAYER + "mixer.in_proj.layer_norm_weight", (8,), ["0_1"]),
        (MTP + "eh_proj.weight", (8, 4), ["0_1"]),
        (MTP + "transformer_layer.mlp.experts.experts.linear_fc1.weight", (2, 8, 4), ["0_2", "1_2"]),
        ("decoder.final_layernorm.weight", (8,), ["0_1"]),
    ],
)
def test_a_module_has_one_for_each_layer_and_expert(key: str, shape: tuple[int, ...], shards: list[str]) -> None:
    module = key.rpartition(".weight.")[0] or key.rpartition(".")[0]
    found = extra_states({key: TensorSpec(shape, "bfloat16")})
    assert list(found) == [f"{module}._extra_state/shard_{shard}" for shard in shards]


@pytest.mark.parametrize(
    "key",
    [
        "embedding.word_embeddings.weight",
        "output_layer.weight",
        LAYER + "mlp.router.weight",
        LAYER + "mlp.router.expert_bias",
        LAYER + "mlp.shared_experts.gate_weight",
        LAYER + "self_attention.A_log",
        LAYER + "self_attention.conv1d.weight.query",
        LAYER + "mixer.norm.weight",
        LAYER + "mixer.conv1d.bias.B",
    ],
)
def test_these_modules_have_none(key: str) -> None:
    assert extra_states({key: TensorSpec((4, 4), "bfloat16")}) == {}


def test_the_output_layer_of_a_mamba_model_has_one() -> None:
    tensors = dict.fromkeys(("decoder.final_norm.weight", "output_layer.weight"), TensorSpec((4, 4), "bfloat16"))
    assert list(extra_states(tensors)) == [
        "decoder.final_norm._extra_state/shard_0_1",
        "output_layer._extra_state/shard_0_1",
    ]


def test_the_attention_of_an_mtp_layer_has_one() -> None:
    key = MTP + "transformer_layer.self_attention.linear_proj.weight"
    assert [key.rpartition(".")[0].removeprefix(MTP) for key in extra_states({key: TensorSpec((4, 4), "float32")})] == [
        "transformer_layer.self_attention.linear_proj",
        "transformer_layer.self_attention.core_attention",
    ]


def test_the_content_is_a_list_with_an_empty_tensor() -> None:
    (content,) = extra_states({"decoder.final_layernorm.weight": TensorSpec((4,), "float32")}).values()
    (state,) = torch.load(io.BytesIO(content), weights_only=True)
    assert state.dtype == torch.uint8 and state.numel() == 0
