"""What a word stands for, and what is refused before anything is loaded."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_bridge.parallel import presets
from hf_bridge.parallel.config import ParallelConfig
from swift_mega.base.errors import UserError


@pytest.mark.parametrize("word", presets.ZERO)
def test_a_preset_leaves_to_the_run_what_the_run_decides(word: str) -> None:
    found = presets.arguments(ParallelConfig(deepspeed=word))["deepspeed"]
    assert found["zero_optimization"]["stage"] == int(word[4])
    assert found["train_batch_size"] == found["gradient_clipping"] == found["bf16"]["enabled"] == "auto"
    assert ("offload" in word) == ("offload_optimizer" in found["zero_optimization"])


def test_transformers_takes_the_presets(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    arguments = presets.arguments(ParallelConfig(fsdp="fsdp2-offload"))
    plugin = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments).fsdp_plugin_args
    assert (plugin["fsdp_version"], plugin["cpu_offload"], plugin["state_dict_type"]) == (2, True, "FULL_STATE_DICT")
    assert presets.arguments(ParallelConfig()) == {}


def test_a_file_is_taken_with_the_same_left_to_the_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}, "gradient_clipping": "auto"}))
    found = presets.deepspeed(str(file))
    assert found["zero_optimization"] == {"stage": 3}
    assert found["train_micro_batch_size_per_gpu"] == "auto"
    assert presets.sharded(ParallelConfig(deepspeed=str(file)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"optimizer": {"type": "Adam"}}', "sets `optimizer`, which the run decides.*--optim"),
        ('{"gradient_clipping": 0.5}', "sets `gradient_clipping`.*--max-grad-norm"),
        ("{", "is no JSON"),
        ("[1]", "holds no object"),
        (None, "cannot be read.*zero1"),
    ],
)
def test_a_file_that_cannot_be_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=f"(?s){message}"):
        presets.check(ParallelConfig(deepspeed=str(file)), 2)


@pytest.mark.parametrize(
    ("config", "others", "message"),
    [
        ({"deepspeed": "zero4"}, {}, "no DeepSpeed preset `zero4`.*zero"),
        ({"fsdp": "fsdp"}, {}, "no FSDP preset `fsdp`.*fsdp2"),
        ({"deepspeed": "zero2", "fsdp": "fsdp2"}, {}, "--deepspeed zero2 --fsdp fsdp2: both shard"),
        ({"deepspeed": "zero3"}, {"quantization": "bnb-nf4"}, "zero3 shards weights, and bnb-nf4"),
        ({"fsdp": "fsdp2"}, {"quantization": "hqq-4"}, "fsdp2 shards weights, and hqq-4"),
        ({"sequence_parallel_size": 2}, {}, "shared by 2 processes .* and there are 3.*--nproc 4"),
        ({"fsdp": "fsdp2"}, {"device_map": "auto"}, "--device-map auto spreads"),
    ],
)
def test_contradictions_are_named(config: dict[str, Any], others: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        presets.check(ParallelConfig(**config), 3, **others)
    presets.check(ParallelConfig(deepspeed="zero2", sequence_parallel_size=2), 2, quantization="bnb-nf4")


def test_what_deepspeed_needs_and_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ParallelConfig(deepspeed="zero2")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda tool: None if tool == "g++" else tool)
        patch.setattr(presets, "_has_gpu", lambda: False)
        with pytest.raises(UserError, match=r"(?s)there is no g\+\+.*--fsdp fsdp2"):
            presets.check(config, 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"(?s)DeepSpeed is not installed.*pip install"):
        presets.check(config, 1)


def test_one_process_has_nobody_to_share_with() -> None:
    with pytest.raises(UserError, match=r"(?s)fsdp2 shares a model among processes.*--nproc 2"):
        presets.check(ParallelConfig(fsdp="fsdp2"), 1)
