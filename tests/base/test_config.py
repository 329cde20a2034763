"""One configuration in three spellings: dataclass, YAML, options. And what a wrong one is answered with."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from swift_mega.base import config as configs
from swift_mega.base.errors import UserError, nearest
from swift_mega.methods.config import PretrainConfig


@dataclass(kw_only=True)
class Inner:
    """A section."""

    rate: float = 0.5
    """How fast.
    Per step."""

    size: int | None = None
    kind: Literal["a", "b"] = "a"
    """100% of it."""
    names: list[str] = field(default_factory=list)
    on: bool = False


@dataclass(kw_only=True)
class Outer:
    """The whole."""

    path: str
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=Inner)


@dataclass(kw_only=True)
class Lone:
    """Fields that no other section has."""

    path: str
    inner: Inner = field(default_factory=Inner)


def parse(cls: type, *words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    configs.add_options(parser, cls)
    return configs.overrides(parser.parse_args(words), cls)


def test_yaml_gives_an_equal_configuration_back(tmp_path: Path) -> None:
    values = {"output": "x", "model": {"path": "m"}, "train": {"steps": 3}, "optimizer": {"lr": "1e-4"}}
    config = configs.build(PretrainConfig, values)
    (tmp_path / "run.yaml").write_text(configs.dump(config))
    assert configs.build(PretrainConfig, configs.read_yaml(tmp_path / "run.yaml")) == config
    assert config.optimizer.lr == 1e-4


def test_options_have_a_long_a_short_and_a_dashed_spelling() -> None:
    expected = {"inner": {"rate": "1e-4", "size": "3"}}
    assert parse(Lone, "--inner.rate", "1e-4", "--inner.size", "3") == expected
    assert parse(Lone, "--rate", "1e-4", "--size=3") == expected
    values = parse(PretrainConfig, "--tensor-model-parallel-size", "2", "--parallel.sequence-parallel")
    assert values == {"parallel": {"tensor_model_parallel_size": "2", "sequence_parallel": "true"}}


def test_a_name_in_two_sections_has_no_short_spelling() -> None:
    with pytest.raises(SystemExit):
        parse(Outer, "--rate", "1")
    assert parse(Outer, "--other.rate", "1") == {"other": {"rate": "1"}}


def test_lists_switches_and_null() -> None:
    values = parse(Lone, "--path", "p", "--names", "x", "0.7 y", "--on", "--size", "null")
    config = configs.build(Lone, values)
    assert config.inner == Inner(names=["x", "0.7 y"], on=True, size=None)
    assert configs.build(Lone, parse(Lone, "--path", "p", "--on", "false")).inner.on is False


def test_an_option_wins_over_the_file() -> None:
    file = {"path": "p", "inner": {"rate": 1.0, "size": 4}}
    merged = configs.merge(file, {"inner": {"rate": "2"}})
    assert configs.build(Lone, merged).inner == Inner(rate=2.0, size=4)
    assert file["inner"] == {"rate": 1.0, "size": 4}


@pytest.mark.parametrize(
    ("values", "what", "fix"),
    [
        ({"path": "p", "iner": {}}, "there is no option `iner`.", "did you mean `inner`?"),
        ({"path": "p", "inner": {"rat": 1}}, "there is no option `inner.rat`.", "did you mean `inner.rate`?"),
        ({"path": "p", "inner": {"size": "big"}}, "`inner.size` is 'big'.", "It must be a whole number or null. ("),
        ({"path": "p", "inner": {"kind": "c"}}, "`inner.kind` is 'c'.", "Possible: a, b. ("),
        ({"path": "p", "inner": {"names": 5}}, "`inner.names` is 5.", "It must be a list. ("),
        ({"path": "p", "inner": {"names": [5]}}, "`inner.names` is [5].", "It must be a list. ("),
        ({"path": "p", "inner": None}, "`inner` must hold `name: value` pairs, got None.", ""),
        ({"inner": {}}, "`path` is missing.", "`--path`"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(values: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        configs.build(Lone, values, "run.yaml")
    assert caught.value.what.startswith("run.yaml: ") and what in caught.value.what
    assert fix in caught.value.fix


def test_a_wrong_option_is_not_blamed_on_the_file() -> None:
    options = {"inner": {"on": "maybe"}}
    with pytest.raises(UserError) as caught:
        configs.build(Lone, configs.merge({"path": "p", "inner": {"rate": 1}}, options), "run.yaml", options)
    assert str(caught.value).startswith("`--inner.on` is 'maybe'.\n  → It must be true or false. (")


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    for text, what in (
        ("a: [1", "is not valid YAML"),
        ("- 1", "holds list, not `name: value` pairs"),
        ("train: {steps: 1}\nmodel: {path: m}\ntrain: {seed: 2}", "`train` is there a second time(.|\n)*line 3"),
        ("train: {steps: 1, seed: 2, steps: 3}", "`steps` is there a second time"),
    ):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(UserError, match=what):
            configs.read_yaml(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("")
    assert configs.read_yaml(tmp_path / "run.yaml") == {}


def test_help_comes_from_the_lines_below_the_fields() -> None:
    parser = argparse.ArgumentParser()
    configs.add_options(parser, Lone)
    text = " ".join(parser.format_help().split())
    assert "How fast. Per step. (default: 0.5)" in text
    assert "100% of it. (default: a)" in text
    assert "A section." in text


def test_every_option_of_a_run_is_described() -> None:
    assert [leaf.path for leaf in configs.leaves(PretrainConfig) if not leaf.doc] == []


def test_nearest() -> None:
    assert nearest("tensor", ["tensors", "pipeline"]) == "did you mean `tensors`?"
    assert nearest("xyz", ["b", "a"]) == "known: a, b"


@dataclass(kw_only=True)
class Mapped:
    """A configuration with a mapping."""

    options: dict[str, float | bool | str | list[str] | None] = field(default_factory=dict)
    """Of something else."""
    inner: Inner = field(default_factory=Inner)


def test_a_mapping_is_pairs_on_the_command_line() -> None:
    given = parse(Mapped, "--options", "rate=1e-3", "on=true", "name=a=b", "none=null", 'list=["x"]', "--rate", "2")
    config = configs.build(Mapped, given)
    assert config.options == {"rate": 1e-3, "on": True, "name": "a=b", "none": None, "list": ["x"]}
    assert config.inner.rate == 2
    switches = ["a=True", "b=False", "c=yes", "d=no", "e=Off", 'f="no"']
    assert list(parse(Mapped, "--options", *switches)["options"].values()) == [True, False, True, False, False, "no"]
    yaml = {"options": {"rate": 2.0, "kept": 1}}
    assert configs.build(Mapped, configs.merge(yaml, given)).options["kept"] == 1
    with pytest.raises(UserError, match="`--options` was given `rate`"):
        parse(Mapped, "--options", "rate")
    with pytest.raises(UserError, match="`--options`"):
        configs.build(Mapped, {"options": 3}, options={"options": 3})


def test_options_by_their_names() -> None:
    config = configs.named(Mapped, options={"a": 1}, rate=2, kind="b")
    assert config == Mapped(options={"a": 1}, inner=Inner(rate=2, kind="b"))
    with pytest.raises(UserError, match="no option `rat`"):
        configs.named(Mapped, rat=2)
