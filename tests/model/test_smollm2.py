"""The real thing: SmolLM2-135M's weights on real text give transformers' logits on every layout that fits it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swift_mega.model.logits import transformers_logits
from tests.model import cases
from tests.support.distributed import Workers

pytestmark = pytest.mark.slow

TEXT = """In the beginning God created the heaven and the earth. And the earth was without form, and void; and
darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And God said, Let
there be light: and there was light."""

TP3 = {"tensor_model_parallel_size": 3}
PP2 = {"pipeline_model_parallel_size": 2}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP1": (1, {}),
    "TP3+SP": (3, {**TP3, "sequence_parallel": True}),
    "PP2": (2, PP2),
    "TP3xPP2": (6, {**TP3, **PP2}),
}


@pytest.fixture(scope="module")
def six_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    workers = Workers(6, tmp_path_factory.mktemp("six"))
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> tuple[Tensor, Tensor]:
    """Two sequences of 24 tokens of real text and transformers' logits."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(smollm2)(TEXT)["input_ids"]
    tokens = torch.tensor(ids[:48]).view(2, 24)
    return tokens, transformers_logits(smollm2, tokens)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits(layout: str, smollm2: Path, expected: tuple[Tensor, Tensor], six_ranks: Workers) -> None:
    tokens, wanted = expected
    world_size, parallel = LAYOUTS[layout]
    for logits in six_ranks(cases.logits, world_size, smollm2, parallel, tokens, timeout_s=300):
        difference = (logits - wanted).abs().max().item()
        print(f"{layout}: largest difference {difference:.1e}")
        assert difference <= 1e-3


def test_weights_return_byte_for_byte(smollm2: Path, six_ranks: Workers, tmp_path: Path) -> None:
    layout = {**TP3, **PP2}
    returned = six_ranks(cases.round_trip, 6, smollm2, layout, tmp_path / "back", timeout_s=300)
    assert set(returned) == {cases.digest(smollm2)}
