"""The families with experts: their config and their tensors, both ways, in all the forms that folders have."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from converters import checkpoint
from converters.convert import convert
from converters.family import family_of, padded_vocab_size
from converters.missing import MISSING, check_trainable
from converters.options import Options
from converters.stores.safetensors import SINGLE, open_folder
from converters.stores.torch_dist import open_checkpoint
from converters.torch_tensors import to_torch
from converters.view import MegatronView
from swift_mega.base.errors import UserError
from tests.support import tiny_moe

from .both_ways import assert_config_goes_both_ways
from .reshape import load
from .test_convert import assert_same_model
from .test_view import assert_pieces_are_the_tensors

TinyModel = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
ALL = tiny_moe.MODELS | tiny_moe.CONVERTED_ONLY


def view_of(folder: Path) -> MegatronView:
    config = checkpoint.read_config(folder)
    padded = padded_vocab_size(config["vocab_size"])
    return MegatronView(family_of(config), config, open_folder(folder), padded)


def whole(view: MegatronView, key: str) -> torch.Tensor:
    spec = view.tensors[key]
    return to_torch(view.read(key, (0,) * len(spec.shape), spec.shape), spec.dtype)


def changed(folder: Path, target: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a model with other tensors."""
    shutil.copytree(folder, target)
    save_file(
        {name: tensor.contiguous() for name, tensor in edit(load(folder)).items()},
        target / SINGLE,
        metadata={"format": "pt"},
    )
    return target


@pytest.mark.parametrize("name", ALL)
def test_config_goes_both_ways(name: str, tiny_model: TinyModel) -> None:
    assert_config_goes_both_ways(tiny_model(name))


@pytest.mark.parametrize("name", tiny_moe.CONVERTED_ONLY)
def test_what_megatron_lacks_is_named(name: str, tiny_model: TinyModel) -> None:
    arguments = view_of(tiny_model(name)).arguments
    with pytest.raises(UserError, match="megatron-core's GPT model lacks what this model needs") as error:
        check_trainable(arguments)
    assert all(MISSING[feature] in error.value.what for feature in arguments.missing)


@pytest.mark.parametrize("name", ALL)
def test_pieces_put_together_are_the_tensor(name: str, tiny_model: TinyModel) -> None:
    assert_pieces_are_the_tensors(view_of(tiny_model(name)))


@pytest.mark.parametrize("name", ALL)
def test_round_trip_is_byte_identical(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    convert(tiny_model(name), tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "hf")
    assert_same_model(tiny_model(name), tmp_path / "hf")
    assert checkpoint.read_config(tiny_model(name)) == checkpoint.read_config(tmp_path / "hf")


def test_all_layers_alike_are_stacked(tiny_model: TinyModel) -> None:
    folder = tiny_model("qwen2-moe")
    tensors, view, layers = load(folder), view_of(folder), range(4)
    moe, mlp = "model.layers.{}.mlp.", "decoder.layers.mlp."

    def gated(of: str) -> torch.Tensor:
        return torch.cat([tensors[of + "gate_proj.weight"], tensors[of + "up_proj.weight"]])

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([tensors[name.format(layer)] for layer in layers])

    each = [[f"{moe.format(layer)}experts.{expert}." for expert in range(4)] for layer in layers]
    expected = {
        mlp + "experts.experts.linear_fc1.weight": torch.stack([torch.stack(list(map(gated, of))) for of in each]),
        mlp + "experts.experts.linear_fc2.weight": torch.stack(
            [torch.stack([tensors[one + "down_proj.weight"] for one in of]) for of in each]
        ),
        mlp + "shared_experts.linear_fc1.weight": torch.stack(
            [gated(moe.format(layer) + "shared_expert.") for layer in layers]
        ),
        mlp + "shared_experts.linear_fc2.weight": stacked(moe + "shared_expert.down_proj.weight"),
        mlp + "shared_experts.gate_weight": stacked(moe + "shared_expert_gate.weight"),
        mlp + "router.weight": stacked(moe + "gate.weight"),
        "decoder.layers.pre_mlp_layernorm.weight": stacked("model.layers.{}.post_attention_layernorm.weight"),
    }
    attention = {
        f"decoder.layers.self_attention.{name}"
        for name in ("linear_qkv.layer_norm_weight", "linear_qkv.weight", "linear_qkv.bias", "linear_proj.weight")
    }
    rest = {"embedding.word_embeddings.weight", "output_layer.weight", "decoder.final_layernorm.weight"}
    assert set(view.tensors) == set(expected) | attention | rest
    for key, tensor in expected.items():
        assert torch.equal(whole(view, key), tensor), key


DENSE = ("mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight")
EXPERTS = (
    "pre_mlp_layernorm.weight",
    "mlp.router.weight",
    "mlp.router.expert_bias",
    "mlp.experts.experts.linear_fc1.weight",
    "mlp.experts.experts.linear_fc2.weight",
    "mlp.shared_experts.linear_fc1.weight",
    "mlp.shared_experts.linear_fc2.weight",
)
LATENT = (
    "input_layernorm.weight",
    "self_attention.linear_proj.weight",
    "self_attention.linear_q_down_proj.weight",
    "self_attention.linear_q_up_proj.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight",
    "self_attention.linear_kv_down_proj.weight",
    "self_attention.linear_kv_up_proj.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight",
)
"""Keys as TransformerEngine's layers have them in megatron-core."""


def test_layers_of_two_kinds_have_keys_of_their_own(tiny_model: TinyModel) -> None:
    folder = tiny_model("deepseek-v3")
    tensors, view = load(folder), view_of(folder)
    layers = [(*LATENT, *(DENSE if layer < 2 else EXPERTS)) for layer in range(4)]
    assert {key for key in view.tensors if key.startswith("decoder.layers.")} == {
        f"decoder.layers.{layer}.{name}" for layer, names in enumerate(layers) for name in names
    }
    fc1 = whole(view, "decoder.layers.2.mlp.experts.experts.linear_fc1.weight")
    assert fc1.shape == (8, 24, 32)
    assert torch.equal(fc1[5, :12], tensors["model.layers.2.mlp.experts.5.gate_proj.weight"])
    assert torch.equal(fc1[5, 12:], tensors["model.layers.2.mlp.experts.5.up_proj.weight"])
    bias = "decoder.layers.3.mlp.router.expert_bias"
    assert torch.equal(whole(view, bias), tensors["model.layers.3.mlp.gate.e_score_correction_bias"])
    assert view.rule(bias).keeps_dtype


def fused(tensors: Tensors) -> Tensors:
    """Mixtral's experts as transformers 5 has them in memory."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for layer in range(4):
        experts = f"model.layers.{layer}.block_sparse_moe.experts."
        w1, w2, w3 = ([tensors[f"{experts}{expert}.w{n}.weight"] for expert in range(4)] for n in (1, 2, 3))
        found[experts + "gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(w1, w3, strict=True)])
        found[experts + "down_proj"] = torch.stack(w2)
    return found


def test_fused_experts_are_the_same_tensors(tiny_model: TinyModel, tmp_path: Path) -> None:
    apart = view_of(tiny_model("mixtral"))
    view = view_of(changed(tiny_model("mixtral"), tmp_path / "fused", fused))
    assert (apart.form, view.form) == ("experts apart", "experts fused")
    assert view.tensors == apart.tensors
    for key in view.tensors:
        assert torch.equal(whole(view, key), whole(apart, key)), key
    piece = next(view.pieces("decoder.layers.mlp.experts.experts.linear_fc1.weight"))
    assert (piece.shape, piece.first) == ((1, 1, 40, 32), (0, 0, 0))
    convert(tmp_path / "fused", tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "hf")
    assert_same_model(tmp_path / "fused", tmp_path / "hf")


def with_mtp(tensors: Tensors) -> Tensors:
    """DeepSeek-V3 with the layer that its own files have after the last."""
    last, mtp = "model.layers.3.", "model.layers.4."
    generator = torch.Generator().manual_seed(0)
    own = {
        mtp + "enorm.weight": torch.randn(32, generator=generator),
        mtp + "hnorm.weight": torch.randn(32, generator=generator),
        mtp + "eh_proj.weight": torch.randn(32, 64, generator=generator),
        mtp + "shared_head.norm.weight": torch.randn(32, generator=generator),
        mtp + "embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        mtp + "shared_head.head.weight": tensors["lm_head.weight"].clone(),
    }
    block = {name.replace(last, mtp): -tensor for name, tensor in tensors.items() if name.startswith(last)}
    return tensors | own | block


def test_layers_that_predict_further_tokens(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = changed(tiny_model("deepseek-v3"), tmp_path / "mtp", with_mtp)
    view = view_of(folder)
    assert {key for key in view.tensors if key.startswith("mtp.")} == {
        "mtp.layers.0." + name
        for name in (
            "enorm.weight",
            "hnorm.weight",
            "eh_proj.weight",
            "final_layernorm.weight",
            *(f"transformer_layer.{name}" for name in (*LATENT, *EXPERTS)),
        )
    }
    assert view.copies == {
        "model.layers.4.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.4.shared_head.head.weight": "lm_head.weight",
    }
    convert(folder, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "hf")
    assert_same_model(folder, tmp_path / "hf")


def test_layers_that_only_the_config_knows(tiny_model: TinyModel, tmp_path: Path) -> None:
    """transformers saves DeepSeek-V3 without its MTP layer and leaves the config as it is."""
    folder = tiny_model("deepseek-v3")
    assert checkpoint.read_config(folder)["num_nextn_predict_layers"] == 1
    assert view_of(folder).arguments.mtp_num_layers == 0
    convert(folder, tmp_path / "megatron")
    assert not [key for key in open_checkpoint(checkpoint.latest(tmp_path / "megatron")).tensors if "mtp" in key]


def test_a_repeated_tensor_that_differs(tiny_model: TinyModel, tmp_path: Path) -> None:
    def differ(tensors: Tensors) -> Tensors:
        found = with_mtp(tensors)
        found["model.layers.4.shared_head.head.weight"][1, 2] += 1
        return found

    with pytest.raises(UserError, match=r"`model.layers.4.shared_head.head.weight` should repeat `lm_head.weight`"):
        view_of(changed(tiny_model("deepseek-v3"), tmp_path / "mtp", differ))


def test_a_cast_leaves_the_experts_bias_as_it_is(tiny_model: TinyModel, tmp_path: Path) -> None:
    convert(tiny_model("deepseek-v3"), tmp_path / "megatron", options=Options(dtype="bfloat16"))
    convert(tmp_path / "megatron", tmp_path / "hf")
    dtypes = {name: spec.dtype for name, spec in open_folder(tmp_path / "hf").tensors.items()}
    biases = {name for name in dtypes if name.endswith("e_score_correction_bias")}
    assert biases and {dtypes[name] for name in biases} == {"float32"}
    assert {dtypes[name] for name in dtypes.keys() - biases} == {"bfloat16"}
