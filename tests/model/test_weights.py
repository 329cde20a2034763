"""Loading and saving weights leaves nothing out, on either side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.convert import convert
from tests.model import cases
from tests.support import tiny, tiny_quantised
from tests.support.distributed import Failed, Workers

TinyModel = Callable[..., Path]


@pytest.fixture
def copy(tiny_model: TinyModel, tmp_path: Path) -> Callable[[str], Path]:
    """A tiny model's folder that a test may damage."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(tiny_model(name), tmp_path / name))

    return make


def test_a_missing_tensor_is_named(copy: Callable[[str], Path], distributed: Workers) -> None:
    folder = copy("llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Failed, match=r"missing: `model.layers.2.mlp.up_proj.weight`"):
        distributed(cases.logits, 2, folder, {"tensor_model_parallel_size": 2}, tiny.tokens(101))


def test_a_tensor_without_a_place_is_named(copy: Callable[[str], Path], distributed: Workers) -> None:
    folder = copy("llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.extra.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Failed, match=r"without a place: `model.layers.2.mlp.extra.weight`"):
        distributed(cases.logits, 1, folder, {}, tiny.tokens(101))


def test_layers_that_config_does_not_build_are_found(copy: Callable[[str], Path], distributed: Workers) -> None:
    """Weights of four layers under a config of two: half the model would be lost."""
    folder = copy("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(Failed, match=r"without a place: `model.layers.2"):
        distributed(cases.logits, 1, folder, {}, tiny.tokens(101))


def test_a_truncated_file_is_named(copy: Callable[[str], Path], distributed: Workers) -> None:
    folder = copy("llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Failed, match=r"model.safetensors is truncated or damaged"):
        distributed(cases.logits, 1, folder, {}, tiny.tokens(101))


def test_a_model_with_parameters_that_no_rule_knows_is_a_bug_that_says_so(
    tiny_model: TinyModel, distributed: Workers
) -> None:
    with pytest.raises(Failed, match=r"no rule for decoder\.layers\.mlp\.linear_fc2\.weight"):
        distributed(cases.logits_without_rule, 1, tiny_model("llama"), "decoder.layers.mlp.linear_fc2.weight")


def test_a_part_of_the_model_on_no_rank_is_found(tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    """A stage that is not there would leave its layers out of the export."""
    with pytest.raises(Failed, match=r"`decoder.layers.mlp.linear_fc1.layer_norm_weight` \(64 of 128\)"):
        distributed(cases.save_half, 2, tiny_model("llama"), tmp_path / "half")


def test_a_failure_of_rank_0_reaches_all(tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    messages = distributed(cases.failure_of_first_rank, 2)
    assert messages == ["rank 0 could not", "rank 0 could not"]


def test_an_unfinished_export_has_no_final_names(tiny_model: TinyModel, distributed: Workers, tmp_path: Path) -> None:
    with pytest.raises(Failed, match="planted"):
        distributed(cases.save_interrupted, 1, tiny_model("llama"), tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("name", ["deepseek-v3", "gpt-oss"])
def test_every_rank_decodes_its_own_part_of_quantised_weights(
    name: str, tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    source = (
        tiny_quantised.gpt_oss(tmp_path)
        if name == "gpt-oss"
        else tiny_quantised.fp8(tiny_model(name, "bfloat16"), tmp_path / "fp8", (4, 4))
    )
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_model_parallel_size": 2}
    distributed(cases.round_trip, 2, source, layout | {"expert_tensor_parallel_size": 1}, tmp_path / "hf")
    convert(source, tmp_path / "dequantised", to="hf")
    found, expected = (load_file(tmp_path / folder / "model.safetensors") for folder in ("hf", "dequantised"))
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor.float()), key
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
