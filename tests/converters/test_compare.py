"""verify, diff, manifest and inspect, against changes that are known."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters.convert import convert
from converters.logical import open_logical
from converters.options import Options
from converters.stores import safetensors
from swift_mega.cli.main import main
from tests.support.adapters import Adapter


@pytest.fixture
def pair(hf_model: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    """A model as Hugging Face folder and as Megatron checkpoint with a padded vocabulary."""
    convert(hf_model("qwen2"), tmp_path / "megatron", options=Options(target_tp=3))
    return hf_model("qwen2"), tmp_path / "megatron"


def flip_one_bit(root: Path) -> None:
    """In the middle of the data of a Megatron checkpoint."""
    data = root / "release" / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def test_every_tensor_is_read_as_the_source_has_it(pair: tuple[Path, Path]) -> None:
    from converters.logical import arrays

    store = safetensors.open_folder(pair[0])
    for path in pair:
        model = open_logical(path)
        assert model.tensors == store.tensors
        for name, array in arrays(model, ""):
            assert array.tobytes() == np.array(store.array(name)).tobytes(), name


def test_the_same_model_in_two_formats(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "verify", *map(str, pair)]) == 0
    assert "are byte for byte the same" in capsys.readouterr().out
    assert main(["convert", "diff", *map(str, pair)]) == 0


def test_a_folder_whose_name_is_not_utf_8(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"hf-\xff")
    shutil.copytree(hf_model("llama"), source)
    assert main(["convert", str(source), str(tmp_path / "megatron")]) == 0
    assert main(["convert", "verify", str(source), str(tmp_path / "megatron")]) == 0


def test_a_flipped_bit_is_named(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "verify", str(pair[1])]) == 2
    assert f"swift-mega convert manifest {pair[1]}" in capsys.readouterr().err
    assert main(["convert", "manifest", str(pair[1])]) == 0
    assert main(["convert", "verify", str(pair[1])]) == 0
    flip_one_bit(pair[1])
    assert main(["convert", "verify", str(pair[1])]) == 1
    assert main(["convert", "verify", *map(str, pair)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("differs in its xxh3_128") == 2
    assert main(["convert", "diff", *map(str, pair)]) == 1
    assert " 1 of " in capsys.readouterr().out.splitlines()[0]


def test_a_cast_is_measured(
    hf_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = [str(hf_model("llama")), str(tmp_path / "other")]
    convert(Path(sides[0]), Path(sides[1]), options=Options(dtype="bfloat16"))
    assert main(["convert", "verify", *sides]) == 1
    capsys.readouterr()
    assert main(["convert", "diff", *sides]) == 1
    assert "; float32 and bfloat16" in capsys.readouterr().out
    assert main(["convert", "diff", *sides, "--tolerance", str(2**-8)]) == 0  # half a unit of eight bits


@pytest.mark.parametrize("tolerance", ["nan", "-1"])
def test_a_tolerance_with_which_nothing_could_be_compared(
    tolerance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "diff", str(tmp_path), str(tmp_path), f"--tolerance={tolerance}"]) == 2
    assert "--tolerance is" in capsys.readouterr().err


def test_where_a_manifest_goes_is_looked_at_first(
    hf_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converters.logical.fingerprints", lambda _: pytest.fail("it was read"))
    for output, why in ((tmp_path / "no" / "x", "there is no folder"), (tmp_path, "it is a folder")):
        assert main(["convert", "manifest", str(hf_model("llama")), "-o", str(output)]) == 2
        assert why in capsys.readouterr().err


def test_inspect_shows_every_tensor_once(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path in pair:
        assert main(["convert", "inspect", str(path), "--all"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert f"{len(lines) - 3:,} tensors" in lines[-2]


def test_inspect_needs_no_supported_architecture(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"some.thing": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert main(["convert", "inspect", str(tmp_path)]) == 0
    assert main(["convert", "inspect", str(tmp_path / "nothing")]) == 2


def test_inspect_shows_an_adapter(adapter: Adapter, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors import safe_open

    folder = adapter("gated")
    assert main(["convert", "inspect", str(folder), "--all"]) == 0
    printed = capsys.readouterr().out
    with safe_open(folder / "adapter_model.safetensors", "np") as file:
        names = list(file.keys())
    assert names and all(f" {name} " in printed for name in names)
    assert f"{len(names)} tensors" in printed and "in 1 file\n" in printed


def test_logits_of_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support import newcomer

    newcomer.tiny_model(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "megatron")
    sides = [str(tmp_path / "megatron"), str(tmp_path / "hf")]
    assert main(["convert", "verify", *sides, "--logits", "And it came to pass"]) == 0
    assert "the likeliest token is the same" in capsys.readouterr().out
    assert main(["convert", "verify", *sides[::-1], "--logits", "And it came to pass"]) == 2
    assert main(["convert", "verify", sides[0], "--logits", "And"]) == 2
    assert main(["convert", "verify", *sides, "--logits", " "]) == 2
    assert "an empty text" in capsys.readouterr().err


def test_logits_need_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["convert", "verify", str(tmp_path), str(tmp_path), "--logits", "And it came to pass"]) == 2
    assert "has no tokenizer" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_named(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = pair[1] / "release" / "hf" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "intermediate_size": 48}))
    assert main(["convert", "verify", *map(str, pair)]) == 2
    assert "with hf/config.json it would be" in capsys.readouterr().err


@pytest.mark.parametrize("side", [0, 1])
def test_a_flipped_bit_is_refused_where_there_is_a_manifest(
    side: int, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(pair[side], tmp_path / "source")
    assert main(["convert", "manifest", str(source)]) == 0
    assert main(["convert", str(source), str(tmp_path / "good")]) == 0
    assert not list((tmp_path / "good").rglob("tensors.xxh3.json"))  # it is of the source alone
    file = min(source.rglob("*.safetensors" if side == 0 else "*.distcp"))
    content = bytearray(file.read_bytes())
    content[-3 if side == 0 else len(content) // 2] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert main(["convert", str(source), str(tmp_path / "bad")]) == 2
    assert "is not what its manifest says: `" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists() and not list(tmp_path.glob(".bad*"))
