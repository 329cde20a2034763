"""Options that mean nothing for a source or a target are refused; those that are accepted change what is written."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters.convert import convert
from converters.opening import open_source
from converters.options import FORMATS, NAMES, Format, Options, check_meaningful
from converters.targets import CONVERSIONS
from swift_mega.base.errors import UserError
from tests.support.adapters import Adapter

HF, DCP, GGUF, MEGATRON, LEGACY, PEFT, ADAPTER = "hf", "dcp", "gguf", "megatron", "legacy", "peft", "adapter"
NAMED = (HF, DCP, GGUF)
"""Weights under Hugging Face names."""
ALL = tuple(NAMES)
TORCH_DIST_OR_RANKS = ("megatron", "legacy")
MEANINGFUL: dict[str, tuple[object, tuple[str, ...], tuple[str, ...]]] = {
    "vocab_divisible_by": (64, TORCH_DIST_OR_RANKS, ALL),
    "target_tp": (2, TORCH_DIST_OR_RANKS, ALL),
    "target_pp": (2, ("legacy",), ALL),
    "target_vpp": (2, ("legacy",), ALL),
    "target_ep": (2, ("legacy",), ALL),
    "target_first_stage_layers": (2, ("legacy",), ALL),
    "target_last_stage_layers": (2, ("legacy",), ALL),
    "layer_spec": ("local", ("legacy",), ALL),
    "keys": ("per-layer", ("megatron",), ALL),
    "max_shard_bytes": (10**9, ("hf",), (*NAMED, MEGATRON, LEGACY)),
    "weights_only": (True, ("megatron",), (MEGATRON,)),
    "config": (Path("folder"), FORMATS, (DCP, GGUF, MEGATRON, LEGACY, PEFT, ADAPTER)),
    "allow_unmapped": (True, FORMATS, (*NAMED, PEFT)),
    "lora": ("fused", FORMATS, (PEFT,)),
    "adapter": (Path("folder"), FORMATS, (*NAMED, MEGATRON, LEGACY)),
    # These have a meaning everywhere.
    "overwrite": (True, FORMATS, ALL),
    "dtype": ("float32", FORMATS, ALL),
    "jobs": (3, FORMATS, ALL),
    "node_rank": (1, FORMATS, ALL),
    "nodes": (2, FORMATS, ALL),
    "dry_run": (True, FORMATS, ALL),
}
"""Option → a value, and the targets and sources for which it does something."""


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Options)])
def test_every_option_is_refused_where_it_means_nothing(name: str, tmp_path: Path) -> None:
    value, targets, sources = MEANINGFUL[name]
    options = Options(**{name: value})  # type: ignore[arg-type]
    for to, kind in itertools.product(FORMATS, NAMES):
        if to in targets and kind in sources:
            check_meaningful(options, to, tmp_path, kind)
            continue
        with pytest.raises(UserError, match=r"^--[a-z-]+ (is of|means nothing for) "):
            check_meaningful(options, to, tmp_path, kind)


def test_what_is_accepted_changes_what_is_written(
    hf_model: Callable[[str], Path], adapter: Adapter, tmp_path: Path
) -> None:
    def planned(source: Path, to: Format, **given: Any) -> str:
        options = Options(config=adapter("attention").parent / "base" if source == peft else None, **given)
        padding = options.vocab_divisible_by or 128, options.target_tp
        opened = open_source(source, *padding, config=options.config, lora=options.lora)
        conversion = CONVERSIONS[to](opened, tmp_path / "x", options)
        return repr((conversion.tensors, conversion.target.files, conversion.target.closing))

    peft = adapter("attention")
    convert(hf_model("qwen2"), tmp_path / "megatron")
    convert(hf_model("qwen2"), tmp_path / "legacy", to="legacy")
    cases: list[tuple[Path, Format, dict[str, Any]]] = [
        (tmp_path / "megatron", "megatron", {"keys": "per-layer"}),
        *((tmp_path / "legacy", "hf", one) for one in ({"max_shard_bytes": 50_000}, {"dtype": "bfloat16"})),
        (hf_model("qwen2"), "legacy", {"layer_spec": "local"}),
        (peft, "megatron", {"lora": "fused"}),
        (peft, "megatron", {"keys": "per-layer"}),
    ]
    for path in (hf_model("qwen2"), tmp_path / "megatron", tmp_path / "legacy"):
        cases += [(path, to, {"vocab_divisible_by": 100}) for to in ("megatron", "legacy")]
        cases += [(path, "megatron", {"target_tp": 4}), (path, "legacy", {"target_tp": 2})]
        cases += [(path, "legacy", {"target_pp": 3})]
    for path, to, given in cases:
        assert planned(path, to, **given) != planned(path, to), (path, to, given)
