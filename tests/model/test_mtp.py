"""A model with layers for further tokens is trained without them, and only if somebody says so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from converters import checkpoint
from converters.convert import convert
from swift_mega.base.errors import UserError
from swift_mega.model.config import ModelConfig
from swift_mega.model.mtp import check_mtp
from tests.converters.test_expert_families import changed, with_mtp
from tests.model import cases
from tests.model.parity import expected
from tests.support.distributed import Failed, Workers

TinyModel = Callable[..., Path]


@pytest.fixture
def folder(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """DeepSeek-V3 with its MTP layer."""
    return changed(tiny_model("deepseek-v3"), tmp_path / "mtp", with_mtp)


def test_a_run_does_not_lose_them_silently(folder: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    config = checkpoint.read_config(folder)
    convert(folder, tmp_path / "megatron")
    for source in (folder, tmp_path / "megatron"):
        with pytest.raises(UserError, match="which training does not carry on") as error:
            check_mtp(ModelConfig(path=str(source)), config, source)
        assert "model.without_mtp=true" in error.value.fix
        check_mtp(ModelConfig(path=str(source), without_mtp=True), config, source)
        check_mtp(ModelConfig(path=str(source), weights="random"), config, source)
    check_mtp(ModelConfig(path="unused"), config, tiny_model("deepseek-v3"))


def test_the_rest_of_the_model_is_the_same(folder: Path, tiny_model: TinyModel, distributed: Workers) -> None:
    tokens, wanted = expected(tiny_model("deepseek-v3"))
    for logits in distributed(cases.logits, 1, folder, {}, tokens, without_mtp=True):
        assert (logits - wanted).abs().max() <= 1e-4
    with pytest.raises(Failed, match=r"has tensors that the model on 1 ranks does not: `mtp\.layers\.0"):
        distributed(cases.logits, 1, folder, {}, tokens)
