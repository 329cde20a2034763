"""Every family through the files of the ranks of every layout and back, byte for byte.

That megatron-core itself reads and writes such files is shown in test_legacy.py, for some; that it computes the same on
them, and that they come back, in tests/model, for those that train.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converters import checkpoint
from converters.convert import convert
from converters.options import Options
from tests.support import tiny, tiny_dense, tiny_hybrid, tiny_moe

from .test_convert import assert_same_model

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP1": {},
    "TP2": {"target_tp": 2},
    "PP2": {"target_pp": 2},
    "TP2xPP2": {"target_tp": 2, "target_pp": 2},
    "EP2": {"target_ep": 2},
}
MODELS = {
    **tiny.TINY,
    **tiny_dense.MODELS,
    **tiny_dense.CONVERTED_ONLY,
    **tiny_moe.MODELS,
    **tiny_moe.CONVERTED_ONLY,
    **tiny_hybrid.MODELS,
    **tiny_hybrid.CONVERTED_ONLY,
}
EXPERTS = {*tiny_moe.MODELS, *tiny_moe.CONVERTED_ONLY, *tiny_hybrid.MODELS, "nemotron-h-even"}
FIRST = {family: name for name, (family, _) in reversed(MODELS.items())} | {"nemotron_h": "nemotron-h-even"}
"""Family → one of its models, which two ranks can share."""
CASES = [(family, layout) for family, name in FIRST.items() for layout in LAYOUTS if layout != "EP2" or name in EXPERTS]


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_there_and_back(family: str, layout: str, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model(FIRST[family])
    options = Options(**LAYOUTS[layout])
    convert(source, tmp_path / "ranks", to="legacy", options=options)
    files = list((tmp_path / "ranks" / "release").glob("mp_rank_*/model_optim_rng.pt"))
    assert len(files) == options.target_tp * options.target_pp * options.target_ep
    convert(tmp_path / "ranks", tmp_path / "hf")
    assert_same_model(source, tmp_path / "hf")
    assert checkpoint.read_config(tmp_path / "hf") == checkpoint.read_config(source)
