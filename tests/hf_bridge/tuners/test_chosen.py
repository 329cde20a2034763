"""From words to configs."""

import dataclasses
import importlib.util
import subprocess
import sys
from typing import Any

import peft
import pytest

from hf_bridge.tuners.chosen import tuners_of
from hf_bridge.tuners.config import TuningConfig
from hf_bridge.tuners.full import FullConfig
from hf_bridge.tuners.lora_plus import LoraPlusConfig
from hf_bridge.tuners.registry import MODULES, tuner, tuner_of
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners.trained import OF_PEFT

HERE = [name for name, module in MODULES.items() if importlib.util.find_spec(f"hf_bridge.tuners.{module}")]


@pytest.mark.parametrize("name", HERE)
def test_each_is_declared(name: str) -> None:
    declared = tuner(name)
    assert declared.name == name
    assert declared.source
    assert declared.defaults.keys() <= {field.name for field in dataclasses.fields(declared.config)}
    if name != "loftq":  # wants scipy
        assert tuner_of(declared.config(**declared.defaults)).config is declared.config


@pytest.mark.parametrize("name", OF_PEFT)
def test_by_its_name_alone(name: str) -> None:
    (config,) = tuners_of(name, TuningConfig()).values()
    for option, value in tuner(name).defaults.items():
        assert getattr(config, option) == value


def test_options_of_all_go_where_a_tuner_has_them() -> None:
    options = TuningConfig(rank=4, alpha=2.0, dropout=0.0, target_modules=["q_proj", "v_proj"])
    lora = tuners_of("lora", options)["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (4, 2.0, 0.0, {"q_proj", "v_proj"})
    loha = tuners_of("loha", TuningConfig(rank=4, alpha=2.0))["default"]
    assert (loha.r, loha.alpha) == (4, 2.0)
    adalora = tuners_of("adalora", TuningConfig(rank=6))["default"]
    assert (adalora.target_r, adalora.init_r) == (6, 9)
    assert tuners_of("vera", TuningConfig())["default"].r == peft.VeraConfig().r
    assert (
        tuners_of("lora", TuningConfig(target_modules=[r".*\.(q|v)_proj"]))["default"].target_modules
        == r".*\.(q|v)_proj"
    )
    assert tuners_of("lora", TuningConfig(target_modules=["self_attn.q_proj"]))["default"].target_modules == {
        "self_attn.q_proj"
    }
    assert tuners_of("full", TuningConfig(freeze=["embed"])) == {"full": FullConfig(freeze=["embed"])}


def test_several_are_joined() -> None:
    found = tuners_of("lora++ia3", TuningConfig(rank=4, tuner_options={"loraplus_lr_ratio": 8.0}))
    assert list(found) == ["default", "ia3"]
    assert isinstance(found["default"], LoraPlusConfig)
    assert (found["default"].r, found["default"].loraplus_lr_ratio) == (4, 8.0)
    assert isinstance(found["ia3"], peft.IA3Config)
    assert list(tuners_of("lora+lora+", TuningConfig())) == ["default", "lora-plus"]


@pytest.mark.parametrize("name", HERE)
def test_its_own_defaults_are_of_its_types(name: str) -> None:
    if name in ("loftq", "peft"):
        return
    config = tuner(name).config(**tuner(name).defaults)
    plain = (bool, int, float, str, type(None))
    given = {one.name: getattr(config, one.name) for one in dataclasses.fields(config) if one.init}
    given = {key: value for key, value in given.items() if isinstance(value, plain)}
    (found,) = tuners_of(name, TuningConfig(tuner_options=given)).values()
    assert {key: getattr(found, key) for key in given} == given


def test_none_is_a_word_where_null_is_not() -> None:
    found = tuners_of("lora", TuningConfig(tuner_options={"bias": None, "layers_pattern": None}))["default"]
    assert (found.bias, found.layers_pattern) == ("none", None)


def test_a_config_of_peft_without_a_name_of_ours() -> None:
    assert tuner_of(peft.HRAConfig()).config is peft.PeftConfig


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ("loar", {}, "no tuner `loar`.*\n.*did you mean `lora`"),
        ("", {}, "is no list of different tuners"),
        ("lora+lora", {}, "is no list of different tuners"),
        ("ia3", {"rank": 4}, "`ia3` has no `rank`"),
        ("galore", {"rank": 0}, "`--rank` is 0.*`galore`.*\n.*at least 1"),
        ("lora", {"freeze": ["embed"]}, "`lora` has no `freeze`"),
        ("lora", {"tuner_options": {"use_rslroa": True}}, "no option `use_rslroa`.*\n.*did you mean `use_rslora`"),
        ("lora", {"tuner_options": {"use_rslora": "maybe"}}, "`use_rslora` is 'maybe'.*\n.*true or false"),
        ("lora", {"tuner_options": {"use_rslora": None}}, "`use_rslora` is null.*\n.*true or false"),
        ("lora", {"tuner_options": {"bias": "al"}}, "`bias` is 'al'.*\n.*none, all, lora_only"),
        ("lora", {"tuner_options": {"init_lora_weights": "pisa"}}, "'pisa'.*\n.*pissa.*true, false"),
        ("lora+", {"tuner_options": {"loraplus_lr_ratio": "x"}}, "`loraplus_lr_ratio` is 'x'.*\n.*a number"),
        ("galore", {"tuner_options": {"update_interval": True}}, "`update_interval` is True.*\n.*a whole number"),
        ("adalora", {"tuner_options": {"tinit": 90, "total_step": 10}}, "`adalora` refuses its options"),
    ],
)
def test_mistakes(words: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tuners_of(words, TuningConfig(**options))


def test_names_without_torch() -> None:
    code = "import sys, hf_bridge.tuners.registry, hf_bridge.tuners.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
