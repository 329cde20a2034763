"""Files of many tensors, as torch reads them: also beyond the 4 GiB that a plain zip can hold."""

import argparse
import os
from pathlib import Path

import pytest
import torch

from converters.stores import torch_zip
from converters.tensors import TensorSpec


def write(file: Path, value: object, payloads: dict[int, bytes]) -> None:
    """The archive of `value` with zeros for tensors, but for these."""
    archive = torch_zip.archive(value)
    with file.open("wb") as stream:
        stream.truncate(archive.nbytes)
        for at, content in (*archive.fixed, *((archive.payloads[n], content) for n, content in payloads.items())):
            stream.seek(at)
            stream.write(content)


def test_a_dict_of_tensors_and_of_plain_values(tmp_path: Path) -> None:
    one, two = torch.randn(3, 5), torch.arange(7).bfloat16()
    value = {
        "model": {"one": TensorSpec((3, 5), "float32"), "two": TensorSpec((7,), "bfloat16"), "nothing": None},
        "args": argparse.Namespace(num_layers=3, names=["a", "b"], lr=1e-3),
        "iteration": 7,
        "list": [TensorSpec((0,), "uint8"), (1, "x")],
    }
    file = tmp_path / "file.pt"
    write(file, value, {0: one.numpy().tobytes(), 1: two.view(torch.uint16).numpy().tobytes()})
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded["model"]["one"], one) and torch.equal(loaded["model"]["two"], two)
    assert loaded["model"]["nothing"] is None and loaded["list"][0].numel() == 0 and loaded["list"][1] == (1, "x")
    assert loaded["args"] == value["args"] and loaded["iteration"] == 7
    ours = torch_zip.read_file(file)
    assert ours["model"]["two"].spec == TensorSpec((7,), "bfloat16") and ours["args"] == value["args"]


@pytest.mark.parametrize("first", [1 << 20, (1 << 32) + 64])
def test_more_than_4_gib(first: int, tmp_path: Path) -> None:
    """A tensor that begins beyond 4 GiB, behind small ones or behind one that is larger itself; the file is sparse."""
    count = 2 if first > 1 << 32 else (1 << 32) // first + 1
    value = {str(number): TensorSpec((first,), "uint8") for number in range(count)}
    file = tmp_path / "file.pt"
    write(file, value, {count - 1: b"\1\2\3"})
    assert os.stat(file).st_blocks * 512 < 1 << 26, "the file system writes zeros"
    loaded = torch.load(file, weights_only=True, mmap=True)
    last = loaded[str(count - 1)]
    assert last.shape == (first,) and last[:4].tolist() == [1, 2, 3, 0] and last[-1] == 0
    record = torch_zip.read_file(file)[str(count - 1)]
    with file.open("rb") as stream:
        stream.seek(record.begin)
        assert record.spec.shape == (first,) and stream.read(4) == b"\1\2\3\0"
