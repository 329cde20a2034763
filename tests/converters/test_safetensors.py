"""The safetensors store: equal files for equal tensors, every kind of damage named, several writers."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from converters.stores.safetensors import INDEX, SINGLE, attach, create, finish, open_folder, split
from converters.tensors import TensorSpec
from swift_mega.base.errors import UserError

from .conftest import SHARDED

SPECS = {
    "b": TensorSpec((3, 2), "float32"),
    "a": TensorSpec((5,), "bfloat16"),
    "c": TensorSpec((2, 2, 2), "float16"),
    "empty": TensorSpec((0, 4), "float32"),
}


@pytest.fixture
def single(hf_model: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(hf_model("llama"), tmp_path / "single"))


@pytest.fixture
def sharded(hf_model: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(hf_model(SHARDED), tmp_path / "sharded"))


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the header; the data stays as it is."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        open_folder(folder)
    return str(error.value)


@pytest.mark.parametrize("variant", ["llama", SHARDED])
def test_reads_what_the_reference_implementation_reads(variant: str, hf_model: Callable[[str], Path]) -> None:
    store = open_folder(hf_model(variant))
    read = set()
    for file in hf_model(variant).glob("*.safetensors"):
        for name, expected in load_file(file).items():
            assert np.array_equal(store.array(name), expected)
            others = (slice(None),) * (expected.ndim - 1)
            assert np.array_equal(store.part(name, (slice(1, 3), *others)), expected[1:3])
            read.add(name)
    assert read == set(store.tensors)


@pytest.mark.parametrize("variant", ["llama", "llama-tied"])
def test_equal_tensors_give_the_file_that_transformers_wrote(
    variant: str, hf_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = open_folder(hf_model(variant))
    copy = create(tmp_path, source.tensors)
    for name in source.tensors:
        copy.array(name)[...] = source.array(name)
    finish(copy)
    assert (tmp_path / SINGLE).read_bytes() == (hf_model(variant) / SINGLE).read_bytes()


def test_shards_and_index(tmp_path: Path) -> None:
    assert list(split(SPECS, 1000)) == [SINGLE]
    assert {name: list(shard) for name, shard in split(SPECS, 26).items()} == {
        "model-00001-of-00002.safetensors": ["b"],
        "model-00002-of-00002.safetensors": ["a", "c", "empty"],
    }
    store = create(tmp_path, SPECS, max_shard_bytes=24)
    assert not (tmp_path / INDEX).exists() and not list(tmp_path.glob("*.safetensors"))
    for number, name in enumerate(SPECS):
        store.array(name)[...] = number
    finish(store)
    again = open_folder(tmp_path)
    assert again.tensors == SPECS
    assert all((again.array(name) == number).all() for number, name in enumerate(SPECS))
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_parameters": 19, "total_size": 24 + 10 + 16}
    assert not list(tmp_path.glob("*.partial"))


def test_several_processes_fill_one_folder(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Three processes write every third row each; the files equal those of one writer."""
    source = open_folder(hf_model(SHARDED))
    for folder in ("alone", "together"):
        store = create(tmp_path / folder, source.tensors, max_shard_bytes=60_000)
        if folder == "alone":
            for name in source.tensors:
                store.array(name)[...] = source.array(name)
        else:
            writers = [
                subprocess.Popen([sys.executable, "-c", WRITER, hf_model(SHARDED), tmp_path / folder, str(rank)])
                for rank in range(3)
            ]
            assert [writer.wait() for writer in writers] == [0, 0, 0]
        finish(store)
    files = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert len(files) > 2
    for name in files:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()


WRITER = """
import sys
from converters.stores.safetensors import attach, open_folder
source, target, rank = open_folder(sys.argv[1]), attach(sys.argv[2]), int(sys.argv[3])
for name in source.tensors:
    target.array(name)[rank::3] = source.array(name)[rank::3]
target.flush()
assert "torch" not in sys.modules
"""


def test_attach_needs_a_created_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="being written"):
        attach(tmp_path)


def test_truncated_file(single: Path) -> None:
    file = single / SINGLE
    os.truncate(file, file.stat().st_size - 3)
    assert "model.safetensors is truncated or damaged" in refusal(single)
    os.truncate(file, 200)
    assert "its header should be" in refusal(single)
    os.truncate(file, 5)
    assert "it is 5 bytes long" in refusal(single)


def test_trailing_bytes(single: Path) -> None:
    with (single / SINGLE).open("ab") as stream:
        stream.write(b"x")
    assert "its header describes" in refusal(single)


def test_broken_header(single: Path) -> None:
    content = bytearray((single / SINGLE).read_bytes())
    content[20] = ord("}")
    (single / SINGLE).write_bytes(content)
    assert "its header cannot be read" in refusal(single)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["lm_head.weight"].update(dtype="F4"), "`lm_head.weight` has dtype 'F4'"),
        (lambda header: header["lm_head.weight"].update(shape=[131, 47]), "needs 24,628 bytes, the header has 25,152"),
        (lambda header: header.pop("lm_head.weight"), "instead of 0"),
        (lambda header: header["lm_head.weight"].pop("shape"), "its header cannot be read"),
    ],
    ids=["dtype", "shape", "gap", "field"],
)
def test_wrong_header(change: Callable[[dict[str, Any]], object], message: str, single: Path) -> None:
    rewrite_header(single / SINGLE, change)
    assert message in refusal(single)


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00005.safetensors").unlink()
    assert f"{INDEX} lists model-00002-of-00005.safetensors, which is not in" in refusal(sharded)


def test_truncated_shard(sharded: Path) -> None:
    file = sharded / "model-00003-of-00005.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert "model-00003-of-00005.safetensors is truncated" in refusal(sharded)


def test_missing_and_extra_index_entry(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    shard = index["weight_map"].pop("model.norm.weight")
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"`model.norm.weight` are in {shard}, but not listed for it" in refusal(sharded)
    index["weight_map"] |= {"model.norm.weight": shard, "model.ghost": shard}
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"`model.ghost` are listed in {INDEX} for {shard}, but are not in it" in refusal(sharded)


def test_broken_index(sharded: Path) -> None:
    (sharded / INDEX).write_text("{")
    assert "is not valid JSON" in refusal(sharded)
    (sharded / INDEX).write_text("{}")
    assert "has no `weight_map`" in refusal(sharded)
    (sharded / INDEX).write_text('{"weight_map": {"a": 3}}')
    assert "`a` is in 3, which is no name of a file" in refusal(sharded)


def test_a_folder_without_safetensors(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    assert "never opened" in refusal(tmp_path)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(UserError, match="is full"):
        create(tmp_path, SPECS)
