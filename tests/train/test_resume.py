"""A resumed run is the run that never stopped: to the bit on its layout, to rounding on any other."""

from pathlib import Path

import numpy as np
import pytest

from converters import checkpoint as layout
from tests.support.runs import values
from tests.train.conftest import BF16_LAYOUTS, BF16_LOSS, BF16_NORM, BITWISE, LAYOUTS, STEPS, STOP, Outputs

pytestmark = pytest.mark.timeout(900)  # the first test waits for the launches that serve all of them


@pytest.mark.parametrize(("precision", "name"), BITWISE)
def test_resuming_on_the_same_layout_is_bitwise(outputs: Outputs, precision: str, name: str) -> None:
    resumed, straight = outputs(f"resumed/{precision}/{name}"), outputs(f"never stopped/{precision}/{name}")
    for series in ("loss", "grad_norm", "lr"):
        assert values(resumed, series) == values(straight, series)
    assert different_tensors(final(resumed), final(straight)) == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_resuming_in_fp32_on_another_layout_continues_the_run(outputs: Outputs, name: str) -> None:
    resumed, straight = outputs(f"from TP1/fp32/{name}"), outputs("straight/fp32/TP1")
    assert values(resumed, "loss") == pytest.approx(values(straight, "loss")[STOP:], rel=1e-5)
    assert values(resumed, "grad_norm") == pytest.approx(values(straight, "grad_norm")[STOP:], rel=1e-4)
    assert len(values(resumed, "loss")) == STEPS - STOP


@pytest.mark.parametrize("name", BF16_LAYOUTS)
def test_resuming_in_bf16_on_another_layout_stays_within_the_stated_bound(outputs: Outputs, name: str) -> None:
    resumed, straight = outputs(f"from TP1/bf16/{name}"), outputs("straight/bf16/TP1")
    assert values(resumed, "loss") == pytest.approx(values(straight, "loss")[STOP:], rel=BF16_LOSS)
    assert values(resumed, "grad_norm") == pytest.approx(values(straight, "grad_norm")[STOP:], rel=BF16_NORM)


def test_a_learning_rate_changed_at_a_resume_takes_effect(outputs: Outputs) -> None:
    before = values(outputs("straight/fp32/TP1"), "lr")[STOP:]
    assert values(outputs("half the lr"), "lr") == pytest.approx([lr / 2 for lr in before])


@pytest.mark.parametrize("fault", ["data_position_off_by_one", "rng_not_restored", "scheduler_not_restored"])
def test_a_resume_that_forgets_something_is_noticed(outputs: Outputs, fault: str) -> None:
    assert different_tensors(final(outputs(f"fault/{fault}")), final(outputs("never stopped/fp32/TP1"))) != []


def test_state_saved_behind_a_padded_bucket_is_noticed(outputs: Outputs) -> None:
    straight = outputs("never stopped/fp32/PP2×VPP2")
    assert different_tensors(final(outputs("fault/padding")), final(straight)) != []


def final(output: Path) -> Path:
    """The last checkpoint of a run."""
    return layout.latest(output / "checkpoints")


def different_tensors(one: Path, other: Path) -> list[str]:
    """Keys of the tensors, weights and optimizer state, that are not the same bytes in both checkpoints."""
    mine, theirs = tensors(one), tensors(other)
    assert mine.keys() == theirs.keys()
    return [key for key in mine if not np.array_equal(mine[key], theirs[key])]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint whole, read by torch alone, as bytes."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    return {key: value.contiguous().view(torch.uint8).numpy() for key, value in state.items()}
