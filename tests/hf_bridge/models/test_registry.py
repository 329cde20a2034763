"""Every family and template has a type; a folder nobody registered is recognised."""

import copy
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from converters.family import registry as families
from hf_bridge.models.recognise import recognise
from hf_bridge.models.registry import MODEL_TYPES, of_config, of_id
from hf_bridge.templates.registry import TEMPLATES
from swift_mega.base.errors import UserError
from tests.support import cli

OF_NO_MODEL = {"chatml", "alpaca", "plain"}
"""Templates for whoever asks for them."""


def test_families_and_templates_are_covered() -> None:
    types = MODEL_TYPES.values()
    assert {family.name for family in families().values()} <= {found.model_type for found in types}
    assert {found.template for found in types if found.template} == set(TEMPLATES) - OF_NO_MODEL


def test_code_of_its_own_is_what_transformers_has_not() -> None:
    assert {found.name for found in MODEL_TYPES.values() if found.own_code} == {
        found.name for found in MODEL_TYPES.values() if found.model_type not in CONFIG_MAPPING
    }


def test_an_id_has_one_type() -> None:
    every = [one for found in MODEL_TYPES.values() for one in found.ids]
    assert len(every) == len(set(every))
    for found in MODEL_TYPES.values():
        assert all(of_id(one) is found for one in found.ids)
        assert all(of_id(f"ms::{one}") is found for one in found.modelscope)
    assert of_id("hf::qwen/qwen3-8b") is MODEL_TYPES["qwen3"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "llama", "vocab_size": 128256}, {"llama3", "deepseek_r1_llama"}),
        (
            {"model_type": "llama", "vocab_size": 128256, "rope_scaling": {"type": "llama3"}},
            {"llama3_2", "deepseek_r1_llama"},
        ),
        ({"model_type": "llama", "vocab_size": 32000}, {"llama2", "vicuna"}),
        ({"model_type": "phi3", "vocab_size": 100352}, {"phi4"}),
        ({"model_type": "llama", "vocab_size": 7}, set()),
        ({"model_type": "olmo2"}, {"olmo2"}),
    ],
)
def test_a_config_names_its_types(config: dict[str, Any], name: set[str]) -> None:
    assert {found.name for found in of_config(config)} == name


@pytest.fixture(scope="module")
def bare(folder: Any) -> Any:
    """A tokenizer without a chat template and without tokens for turns."""
    return AutoTokenizer.from_pretrained(folder)


def with_tokens(tokenizer: Any, *tokens: str) -> Any:
    made = copy.deepcopy(tokenizer)
    made.add_tokens(list(tokens), special_tokens=True)
    return made


def test_the_tokenizer_tells_types_of_one_config_apart(bare: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "llama", "vocab_size": 128256}
    for token, name in (("<|eot_id|>", "llama3"), ("<｜end▁of▁sentence｜>", "deepseek_r1")):
        found = recognise("models/mine", config, with_tokens(bare, token))
        assert found.type is not None and found.template(None) == found.type.template == name
        assert f"`{name}` is taken" in capsys.readouterr().out


def test_types_that_nothing_tells_apart(bare: Any) -> None:
    config = {"model_type": "llama", "vocab_size": 32000}
    found = recognise("models/mine", config, bare)
    assert found.type is None
    with pytest.raises(UserError, match=r"no chat template, and models of its type speak llama2, vicuna"):
        found.template(None)
    assert found.template("alpaca") == "alpaca"
    own = copy.copy(bare)
    own.chat_template = "{{ messages }}"
    assert recognise("models/mine", config, own).template(None) is None
    assert recognise("lmsys/vicuna-7b-v1.5", config, bare).template(None) == "vicuna"


def test_a_type_that_nobody_registered(bare: Any) -> None:
    found = recognise("models/mine", {"model_type": "gpt2"}, bare)
    with pytest.raises(UserError, match=r"none is registered for it[\s\S]*--template chatml[\s\S]*zephyr"):
        found.template(None)


def test_the_listing(folder: Any) -> None:
    for arguments, expected in (
        ([], "61 types"),
        (["qwen3"], "ms::Qwen/Qwen3-8B"),
        (["Qwen/Qwen3-8B"], "qwen3, thinks"),
        ([str(folder)], "no chat template"),
    ):
        outcome = cli.in_process(["bridge", "models", *arguments])
        assert outcome.code == 0 and expected in outcome.out
    outcome = cli.in_process(["bridge", "models", "qwn3"])
    assert outcome.code == 2 and "did you mean `qwen3`?" in outcome.err
