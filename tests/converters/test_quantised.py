"""Folders in fp8 and MXFP4 as a source: what is read is what transformers' own functions dequantise, bit for bit."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from converters import checkpoint, engine, forecast
from converters.convert import convert
from converters.family import family_of
from converters.opening import open_source
from converters.options import Options
from converters.stores.quantised import open_weights
from converters.stores.safetensors import SINGLE, open_folder
from converters.targets import CONVERSIONS, Conversion
from converters.tensors import CARRIER
from converters.torch_tensors import to_carrier
from converters.view import MegatronView
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.support import tiny_quantised
from tests.support.tiny_quantised import Tensors, fp8

from .reshape import load
from .test_convert import assert_same_model, refusal
from .test_expert_families import changed, with_mtp

TinyModel = Callable[..., Path]


@pytest.fixture(scope="session")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_quantised.gpt_oss(tmp_path_factory.mktemp("gpt-oss"))


def dequantised(values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] | None, dtype: str) -> torch.Tensor:
    """By transformers, which does not know blocks that are cut off: each matrix is filled up and cut again."""
    rows, columns = values.shape[-2:]
    down, across = block or (rows, columns)
    shape = *values.shape[:-2], -(-rows // down) * down, -(-columns // across) * across
    filled = torch.zeros(shape, dtype=torch.uint8)
    filled[..., :rows, :columns] = values.view(torch.uint8)
    op = Fp8Dequantize(None)
    found: torch.Tensor = op._dequantize_one(filled.view(values.dtype), scales, getattr(torch, dtype))
    return found[..., :rows, :columns]


def plain(folder: Path) -> Tensors:
    """All tensors of a folder, those in fp8 dequantised by transformers."""
    tensors, config = load(folder), checkpoint.read_config(folder)
    block = config["quantization_config"]["weight_block_size"]
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        scales, name = tensors.pop(name), name.removesuffix("_scale_inv")
        tensors[name] = dequantised(tensors[name], scales, block, config["dtype"])
    return tensors


def assert_holds(folder: Path, expected: Tensors) -> None:
    found = load(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def assert_same_loaded(one: Path, other: Path) -> None:
    """transformers has the same weights of both, the same config but for the quantisation."""
    ours, theirs = (transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in (one, other))
    assert ours.dtype == theirs.dtype
    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    config = checkpoint.read_config(other)
    assert checkpoint.read_config(one) == {name: config[name] for name in config if name != "quantization_config"}


def converted(source: Path, folder: Path) -> Path:
    """The folder after HF → Megatron → HF → Megatron → HF, which is the same after every round."""
    convert(source, folder / "megatron")
    convert(folder / "megatron", folder / "hf")
    convert(folder / "hf", folder / "again")
    convert(folder / "again", folder / "hf-again")
    assert_same_model(folder / "hf", folder / "hf-again")
    for hf in (folder / "hf", folder / "megatron" / "release" / "hf"):
        assert "quantization_config" not in checkpoint.read_config(hf)
    return folder / "hf"


RAGGED = [
    ("deepseek-v3", "bfloat16", (4, 4)),
    ("moonlight", "bfloat16", (128, 128)),
    ("qwen3-bias", "bfloat16", (7, 5)),
    ("qwen3-bias", "float32", (7, 5)),
    ("qwen3-tied", "float16", (128, 128)),
    ("minimax-m2", "bfloat16", None),
]


@pytest.mark.parametrize(("name", "dtype", "block"), RAGGED)
def test_there_and_back(
    name: str, dtype: str, block: tuple[int, int] | None, tiny_model: TinyModel, tmp_path: Path
) -> None:
    folder = tiny_model(name, dtype)
    if name == "deepseek-v3":
        folder = changed(folder, tmp_path / "mtp", with_mtp)
    source = fp8(folder, tmp_path / "fp8", block)
    assert_holds(converted(source, tmp_path), plain(source))
    convert(source, tmp_path / "dequantised", to="hf")
    assert_same_model(tmp_path / "hf", tmp_path / "dequantised")


@pytest.mark.parametrize("block", [(2, 2), (128, 128)])
def test_transformers_loads_the_same(block: tuple[int, int], tiny_model: TinyModel, tmp_path: Path) -> None:
    source = fp8(tiny_model("deepseek-v3", "bfloat16"), tmp_path / "fp8", block)
    assert_same_loaded(converted(source, tmp_path), source)


def test_transformers_loads_the_same_of_mxfp4(gpt_oss: Path, tmp_path: Path) -> None:
    hf = converted(gpt_oss, tmp_path)
    assert_same_loaded(hf, gpt_oss)
    tensors, found = load(gpt_oss), load(hf)
    for name in ("gate_up_proj", "down_proj"):
        name = f"model.layers.2.mlp.experts.{name}"
        expected = convert_moe_packed_tensors(tensors[name + "_blocks"], tensors[name + "_scales"])
        assert torch.equal(found[name], expected)
    convert(gpt_oss, tmp_path / "dequantised", to="hf")
    assert_same_model(hf, tmp_path / "dequantised")


FIELDS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [3, 5]},
    "mxfp4": {"quant_method": "mxfp4"},
}


def weights_of(tensors: Tensors, folder: Path, method: str, **config: Any) -> Any:
    save_file(tensors, folder / SINGLE)
    return open_weights(folder, {"quantization_config": FIELDS[method], **config})


def assert_same_bits(found: np.ndarray, dtype: str, expected: torch.Tensor) -> None:
    """But for those of NaN, of which there are many."""
    wanted = to_carrier(expected)
    nan = expected.isnan().numpy()
    assert found.dtype == CARRIER[dtype] == wanted.dtype and found.shape == wanted.shape
    assert (found == wanted)[~nan].all()
    kept = torch.from_numpy(found.view(f"i{found.itemsize}")).view(expected.dtype)
    assert torch.equal(kept.isnan(), expected.isnan())


class TestNumbers:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
    @pytest.mark.parametrize("scale", ["float32", "bfloat16", "float16", "uint8"])
    def test_every_byte_of_fp8(self, dtype: str, scale: str, tmp_path: Path) -> None:
        """Under factors of all sizes, in several matrices with blocks that are cut off at both edges."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(0, 256, (3, 100, 132), dtype=torch.uint8, generator=generator)
        values = values.view(torch.float8_e4m3fn)
        exponents = torch.randint(-120, 120, (3, 34, 27), generator=generator)
        mantissas = torch.rand(exponents.shape, generator=generator) + 1
        factors = mantissas.ldexp(exponents).to(getattr(torch, scale)) if scale != "uint8" else exponents + 127
        scales = factors.to(getattr(torch, scale))
        store = weights_of({"w": values, "w_scale_inv": scales}, tmp_path, "fp8", torch_dtype=dtype)
        expected = dequantised(values, scales, (3, 5), dtype)
        assert_same_bits(store.array("w"), dtype, expected)
        index = 1, slice(5, 96, 7), slice(3, 50)
        assert_same_bits(store.part("w", index), dtype, expected[index])

    def test_every_byte_of_mxfp4_under_every_exponent(self, tmp_path: Path) -> None:
        blocks = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 256, 1, 1)
        scales = torch.arange(256, dtype=torch.uint8).reshape(1, 256, 1).repeat(2, 1, 16)
        store = weights_of({"w_blocks": blocks, "w_scales": scales}, tmp_path, "mxfp4")
        expected = convert_moe_packed_tensors(blocks, scales)
        assert_same_bits(store.array("w"), "bfloat16", expected)
        index = 1, slice(3, 500), slice(2, 255, 2)
        assert_same_bits(store.part("w", index), "bfloat16", expected[index])

    def test_plain_tensors_stay_windows_on_their_file(self, tmp_path: Path) -> None:
        store = weights_of({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path, "fp8")
        assert isinstance(store.array("w"), np.memmap)


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss"])
def test_every_box_is_that_of_the_plain_tensor(name: str, gpt_oss: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    """What a rank reads: a part of some layers, some experts, some rows and columns."""
    source = gpt_oss if name == "gpt-oss" else fp8(tiny_model(name, "bfloat16"), tmp_path / "fp8", (4, 4))
    convert(source, tmp_path / "plain", to="hf")
    config = checkpoint.read_config(source)
    one = MegatronView(family_of(config), config, open_weights(source, config), 256)
    other = MegatronView(family_of(config), config, open_folder(tmp_path / "plain"), 256)
    assert one.tensors == other.tensors
    for key, spec in one.tensors.items():
        offset = tuple(size // 3 for size in spec.shape)
        for shape in (tuple(-(-size // 2) for size in spec.shape), tuple(min(size, 2) for size in spec.shape)):
            assert one.read(key, offset, shape).tobytes() == other.read(key, offset, shape).tobytes(), key


def test_commands(
    gpt_oss: Path,
    tiny_model: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forecast, "PROBE_S", 0.01)
    source = fp8(tiny_model("qwen3-bias", "bfloat16"), tmp_path / "fp8", (7, 5))
    for number, folder in enumerate((source, gpt_oss)):
        megatron, manifest = str(tmp_path / f"megatron{number}"), str(tmp_path / f"{number}.json")
        assert main(["convert", str(folder), megatron, "--dry-run"]) == 0
        assert main(["convert", str(folder), megatron]) == 0
        assert main(["convert", "manifest", str(folder), "-o", manifest]) == 0
        for other in (str(folder), manifest):
            assert main(["convert", "verify", megatron, other]) == 0
        assert main(["convert", "diff", megatron, str(folder)]) == 0
        assert main(["convert", "inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "decoded from float8_e4m3fn to bfloat16, rounded as transformers rounds" in said
    assert "decoded from mxfp4 to bfloat16, which is exact" in said
    assert re.search(r"self_attn\.q_proj\.weight_scale_inv +\d+ B +float32", said) and "down_proj_scales" in said


def test_torch_is_not_needed(gpt_oss: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from converters.convert import convert\n"
        f"convert(Path({str(gpt_oss)!r}), Path({str(tmp_path / 'megatron')!r}))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_interrupted_conversion_begins_anew_where_scales_have_changed(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = fp8(tiny_model("qwen3-bias", "bfloat16"), tmp_path / "fp8", (7, 5))
    scales = source / "model-2.safetensors"
    planned = conversion(source)
    assert scales in planned.plan.sources
    before = engine.fingerprint(planned.plan, planned.target)
    scales.touch()
    planned = conversion(source)
    assert engine.fingerprint(planned.plan, planned.target) != before


def conversion(source: Path) -> Conversion:
    return CONVERSIONS["megatron"](open_source(source), source.parent / "x", Options())


def test_scales_of_activations_are_left_out_and_listed(
    tiny_model: TinyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = fp8(tiny_model("qwen3-bias", "bfloat16"), tmp_path / "fp8", None, activation_scheme="static")
    expected = plain(source)
    edit(source, {"model.layers.0.mlp.up_proj.activation_scale": torch.tensor(2.0, dtype=torch.bfloat16)})
    assert_holds(converted(source, tmp_path), expected)
    said = capsys.readouterr().out
    assert "left out 1 scales of activations, such as `model.layers.0.mlp.up_proj.activation_scale`" in said


def test_what_megatron_has_no_place_for_is_kept_decoded(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = fp8(tiny_model("qwen3-bias", "bfloat16"), tmp_path / "fp8", (7, 5))
    values = torch.arange(96, dtype=torch.uint8).reshape(8, 12).view(torch.float8_e4m3fn)
    edit(source, {"vision.weight": values, "vision.weight_scale_inv": torch.rand(2, 3)})
    convert(source, tmp_path / "megatron", options=Options(allow_unmapped=True))
    convert(tmp_path / "megatron", tmp_path / "hf")
    assert_holds(tmp_path / "hf", plain(source))


def edit(folder: Path, new: dict[str, torch.Tensor | None]) -> None:
    """Put tensors into the folder's second file, or take them out of it."""
    file, index = folder / "model-2.safetensors", folder / "model.safetensors.index.json"
    tensors = {name: tensor for name, tensor in (load_file(file) | new).items() if tensor is not None}
    save_file(tensors, file)
    weight_map = json.loads(index.read_text())["weight_map"]
    kept = {name: own for name, own in weight_map.items() if own != file.name}
    index.write_text(json.dumps({"metadata": {}, "weight_map": kept | dict.fromkeys(tensors, file.name)}))


class TestRefused:
    SCALE = "model.layers.2.mlp.up_proj.weight_scale_inv"

    @pytest.fixture
    def source(self, tiny_model: TinyModel, tmp_path: Path) -> Path:
        return fp8(tiny_model("qwen3-bias", "bfloat16"), tmp_path / "fp8", (7, 5))

    def test_missing_scales(self, source: Path) -> None:
        edit(source, {self.SCALE: None})
        found = refusal(source, source.parent / "x", allow_unmapped=True)
        assert f"has `{self.SCALE.removesuffix('_scale_inv')}`, float8_e4m3fn [48, 32], but no `{self.SCALE}`" in found

    @pytest.mark.parametrize("wrong", [torch.ones(7, 6), torch.ones(7, 7, dtype=torch.float64), torch.ones(49)])
    def test_other_scales(self, wrong: torch.Tensor, source: Path) -> None:
        edit(source, {self.SCALE: wrong})
        found = refusal(source, source.parent / "x")
        assert f"`{self.SCALE}` is" in found and "of shape [48, 32] needs [7, 7] in float32 or bfloat16" in found

    def test_scales_of_nothing(self, source: Path) -> None:
        edit(source, {"model.norm.weight_scale_inv": torch.ones(1)})
        assert "without a place: `model.norm.weight_scale_inv`" in refusal(source, source.parent / "x")

    @pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", None])
    def test_another_method(self, method: str | None, source: Path) -> None:
        self.say(source, {"quant_method": method})
        found = refusal(source, source.parent / "x")
        assert f"`quantization_config` says quant_method {method!r}, which cannot be read" in found
        assert "fp8 (" in found and "mxfp4 (" in found

    @pytest.mark.parametrize("block", [0, [128], [0, 128], [128, "128"]])
    def test_no_block(self, block: Any, source: Path) -> None:
        self.say(source, {"quant_method": "fp8", "weight_block_size": block})
        assert f"weight_block_size` is {block!r}" in refusal(source, source.parent / "x")

    def test_quantised_weights_of_which_the_config_says_nothing(self, source: Path) -> None:
        self.say(source, None)
        assert "weight_scale_inv" in refusal(source, source.parent / "x")

    def test_a_plain_folder_is_not_copied(self, tiny_model: TinyModel, tmp_path: Path) -> None:
        assert "of plain weights already" in refusal(tiny_model("llama"), tmp_path / "x", to="hf")

    def test_mxfp4_of_another_kind(self, gpt_oss: Path, tmp_path: Path) -> None:
        name = "model.layers.1.mlp.experts.down_proj"
        for blocks in (torch.ones(4, 96, 2, 8, dtype=torch.uint8), torch.ones(4, 96, 2, 16, dtype=torch.int8)):
            with pytest.raises(UserError, match="MXFP4 is uint8 with 16 bytes for 32 numbers"):
                weights_of({name + "_blocks": blocks}, tmp_path, "mxfp4")
        source = Path(shutil.copytree(gpt_oss, tmp_path / "mxfp4"))
        edit(source, {name + "_scales": torch.ones(4, 96, 3, dtype=torch.uint8)})
        assert f"`{name}_scales` is uint8 [4, 96, 3]; `{name}_blocks` of shape [4, 96, 2, 16]" in refusal(
            source, tmp_path / "x"
        )

    def say(self, folder: Path, said: dict[str, Any] | None) -> None:
        config = checkpoint.read_config(folder)
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
