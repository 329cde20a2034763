"""Checkpoints of torch.distributed.checkpoint, as FSDP writes them, with the names of Hugging Face."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import checkpoint
from converters.convert import convert
from converters.options import Options
from converters.stores.safetensors import open_folder
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.support.distributed import Workers

TinyModel = Callable[..., Path]


def save(hf: Path, folder: Path, prefix: list[str]) -> None:
    """Every rank a part of the rows of every tensor, as `fully_shard` leaves them; with some state of an optimizer."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    weights = {
        name: distribute_tensor(tensor, mesh, [Shard(0)])
        for name, tensor in load_file(hf / "model.safetensors").items()
    }
    state: dict[str, Any] = weights
    for name in reversed(prefix):
        state = {name: state}
    moments = {name: torch.ones(3) for name in weights}
    dcp.save({**state, "optim": {"exp_avg": moments}, "train_state": {"step": 3}}, checkpoint_id=folder)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("llama", []), ("qwen2-tied", ["model"]), ("qwen3-moe", ["app", "model"]), ("gpt-oss", ["model"])],
)
def test_exported_and_imported(
    name: str, prefix: list[str], tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    hf = tiny_model(name)
    distributed(save, 3, hf, tmp_path / "dcp", prefix)
    options = Options(config=hf)
    convert(tmp_path / "dcp", tmp_path / "hf", to="hf", options=options)
    convert(tmp_path / "dcp", tmp_path / "megatron", options=options)
    convert(tmp_path / "megatron", tmp_path / "back")
    assert checkpoint.is_megatron(tmp_path / "megatron")
    sides = [str(tmp_path / "dcp"), str(tmp_path / "megatron"), "--config", str(hf)]
    assert main(["convert", "verify", *sides]) == main(["convert", "diff", *sides]) == 0
    expected = open_folder(hf)
    for folder in ("hf", "back"):
        found = open_folder(tmp_path / folder)
        assert found.tensors == expected.tensors
        for key in expected.tensors:
            assert found.array(key).tobytes() == expected.array(key).tobytes(), key
        assert json.loads((tmp_path / folder / "config.json").read_text()) == checkpoint.read_config(hf)


class TestRefused:
    @pytest.fixture
    def saved(self, tiny_model: TinyModel, tmp_path: Path) -> Callable[..., Path]:
        def make(**more: torch.Tensor) -> Path:
            import torch.distributed.checkpoint as dcp
            from safetensors.torch import load_file

            weights = load_file(tiny_model("llama") / "model.safetensors")
            weights.pop("model.layers.2.mlp.up_proj.weight", None) if "gap" in more else None
            dcp.save({**weights, **more}, checkpoint_id=tmp_path / "dcp")
            return tmp_path / "dcp"

        return make

    def refusal(self, source: Path, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            convert(source, source.parent / "x", options=Options(**options))
        return str(error.value)

    def test_no_config(self, saved: Callable[..., Path]) -> None:
        assert "--config FOLDER" in self.refusal(saved())

    def test_what_has_no_place_and_what_is_missing(self, saved: Callable[..., Path], tiny_model: TinyModel) -> None:
        found = self.refusal(saved(gap=torch.ones(1)), config=tiny_model("llama"))
        assert "missing: `model.layers.2.mlp.up_proj.weight`" in found and "without a place: `gap`" in found

    def test_another_models_names(self, tmp_path: Path, tiny_model: TinyModel) -> None:
        import torch.distributed.checkpoint as dcp

        dcp.save({"encoder.weight": torch.ones(2)}, checkpoint_id=tmp_path / "dcp")
        assert "has no `model.embed_tokens.weight`; it holds: encoder.weight" in self.refusal(
            tmp_path / "dcp", config=tiny_model("llama")
        )
