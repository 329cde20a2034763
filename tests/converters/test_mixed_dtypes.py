"""Models whose tensors have several dtypes, so that one Megatron tensor is made of more than one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters import checkpoint
from converters.convert import convert
from converters.family import family_of
from converters.options import Options
from converters.stores.safetensors import SINGLE, open_folder
from converters.torch_tensors import to_torch
from converters.view import MegatronView
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.support.adapters import Adapter

from .reshape import load, reshaped
from .test_convert import assert_same_model

HALF = ("v_proj.weight", "layers.1.mlp.gate_proj.weight", "layers.2.input_layernorm.weight", "embed_tokens.weight")
"""Parts of a tensor, a layer of a tensor, and a whole one."""
ATTENTION = "decoder.layers.self_attention.linear_qkv.weight"


@pytest.fixture
def mixed(hf_model: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(hf_model("llama"), tmp_path / "mixed"))
    tensors = load(folder)
    halved = {name: tensor.bfloat16() for name, tensor in tensors.items() if name.endswith(HALF)}
    save_file(tensors | halved, folder / SINGLE, metadata={"format": "pt"})
    return folder


def view_of(folder: Path) -> MegatronView:
    config = checkpoint.read_config(folder)
    return MegatronView(family_of(config), config, open_folder(folder), 256)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("to", ["megatron", "legacy"])
def test_a_cast_makes_them_one(to: str, dtype: str, mixed: Path, tmp_path: Path) -> None:
    convert(mixed, tmp_path / "megatron", to=to, options=Options(dtype=dtype))  # type: ignore[arg-type]
    convert(tmp_path / "megatron", tmp_path / "hf")
    found, expected = load(tmp_path / "hf"), load(mixed)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor.to(getattr(torch, dtype))), name


@pytest.mark.parametrize("to", ["megatron", "legacy"])
def test_without_one_the_error_names_them(to: str, mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is one tensor in Megatron, made of tensors of different dtypes") as error:
        convert(mixed, tmp_path / "x", to=to)  # type: ignore[arg-type]
    norm = "`model.layers.{}.input_layernorm.weight` is {}"
    assert f"{norm.format(2, 'bfloat16')}, {norm.format(0, 'float32')}; and 2 more" in error.value.what
    assert "--dtype fp32" in error.value.fix
    assert not (tmp_path / "x").exists()


def test_what_is_read_for_training_is_exact(mixed: Path) -> None:
    view = view_of(mixed)
    expected = reshaped({name: tensor.float() for name, tensor in load(mixed).items()}, 3, 1, 256)
    assert set(view.mixed) == {
        ATTENTION,
        "decoder.layers.mlp.linear_fc1.weight",
        ATTENTION.replace("weight", "layer_norm_weight"),
    }
    for key in view.mixed:
        spec = view.tensors[key]
        assert torch.equal(to_torch(view.read(key, (0,) * len(spec.shape), spec.shape), spec.dtype), expected[key])


def test_folders_keep_and_compare_them_as_they_are(mixed: Path, tmp_path: Path) -> None:
    convert(mixed, tmp_path / "sharded", to="hf", options=Options(max_shard_bytes=60_000))
    assert_same_model(mixed, tmp_path / "sharded")
    assert main(["convert", "verify", str(mixed), str(tmp_path / "sharded")]) == 0
    assert main(["convert", "manifest", str(mixed)]) == 0
    convert(mixed, tmp_path / "megatron", options=Options(dtype="float32"))
    assert main(["convert", "diff", str(mixed), str(tmp_path / "megatron")]) == 0


def test_an_adapter_is_merged_into_each_as_it_is(adapter: Adapter, tmp_path: Path) -> None:
    """As into a folder whose tensors all are of that dtype."""
    folder = adapter("every-linear")
    expected: dict[str, torch.Tensor] = {}
    for number, names in enumerate((["q_proj", "down_proj"], [])):
        base = Path(shutil.copytree(folder.parent / "base", tmp_path / f"base-{number}"))
        tensors = load_file(base / SINGLE)
        halved = {n: t.bfloat16() for n, t in tensors.items() if not names or n.split(".")[-2] in names}
        save_file(tensors | halved, base / SINGLE, metadata={"format": "pt"})
        convert(base, tmp_path / f"merged-{number}", to="hf", options=Options(adapter=folder))
        if number == 0:
            expected = {name: tensor for name, tensor in load(tmp_path / "merged-0").items() if name in halved}
    assert expected and {tensor.dtype for tensor in expected.values()} == {torch.bfloat16}
    whole = load(tmp_path / "merged-1")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in expected.items())


def test_factors_of_several_dtypes_are_not_fused(adapter: Adapter, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter("attention"), tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    halved = {name: tensor.bfloat16() for name, tensor in tensors.items() if "v_proj.lora_B" in name}
    save_file(tensors | halved, folder / "adapter_model.safetensors")
    options = Options(config=adapter("attention").parent / "base", lora="fused")
    with pytest.raises(UserError, match="fuses is stored in different dtypes: bfloat16, float32"):
        convert(folder, tmp_path / "x", options=options)
