"""The options of `swift-mega convert`."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from converters import checkpoint
from converters.commands import add_arguments, parse_size, run
from converters.stores.safetensors import open_folder
from swift_mega.base.errors import UserError


def call(*words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(word) for word in words]))


def test_there_and_back(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    call(hf_model("qwen2"), tmp_path / "megatron", "--to", "megatron", "--vocab-divisible-by", "4", "--target-tp", "3")
    call(tmp_path / "megatron", tmp_path / "hf", "--dtype", "bf16", "--max-shard-size", "40KB")
    exported = open_folder(tmp_path / "hf")
    assert {spec.dtype for spec in exported.tensors.values()} == {"bfloat16"}
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    assert checkpoint.read_config(tmp_path / "hf")["dtype"] == "bfloat16"


@pytest.mark.parametrize("option", ["--vocab-divisible-by", "--target-tp"])
def test_padding_must_be_positive(option: str, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{option} is 0"):
        call(hf_model("llama"), tmp_path / "x", option, "0")


def test_sizes() -> None:
    assert [parse_size(text) for text in ("5GB", "500MB", "1.5kb", "123", "7 B")] == [
        5 * 10**9,
        5 * 10**8,
        1500,
        123,
        7,
    ]
    for text in ("", "GB", "5XB", "-1GB", "0", "5GBGB", "1.2.3MB"):
        with pytest.raises(UserError, match="--max-shard-size"):
            parse_size(text)
