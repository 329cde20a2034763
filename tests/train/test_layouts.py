"""Every parallel layout takes the same steps: as one process, and as a bare transformers loop."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import values
from tests.train.conftest import BF16_LAYOUTS, BF16_LOSS, BF16_NORM, LAYOUTS, STEPS, Outputs

OTHERS = [layout for layout in LAYOUTS if layout != "TP1"]

pytestmark = pytest.mark.timeout(900)  # the first test waits for the launches that serve all of them


@pytest.mark.parametrize("layout", OTHERS)
def test_fp32_losses_and_gradient_norms_equal_those_of_one_process(outputs: Outputs, layout: str) -> None:
    ours, single = outputs(f"straight/fp32/{layout}"), outputs("straight/fp32/TP1")
    assert values(ours, "loss") == pytest.approx(values(single, "loss"), rel=1e-5)
    assert values(ours, "grad_norm") == pytest.approx(values(single, "grad_norm"), rel=1e-4)
    assert values(ours, "eval/loss") == pytest.approx(values(single, "eval/loss"), rel=1e-5)


@pytest.mark.parametrize("layout", BF16_LAYOUTS)
def test_bf16_losses_stay_within_the_stated_bound(outputs: Outputs, layout: str) -> None:
    ours, single = outputs(f"straight/bf16/{layout}"), outputs("straight/bf16/TP1")
    assert values(ours, "loss") == pytest.approx(values(single, "loss"), rel=BF16_LOSS)
    assert values(ours, "grad_norm") == pytest.approx(values(single, "grad_norm"), rel=BF16_NORM)


def test_norm_gradients_that_are_not_reduced_are_noticed(outputs: Outputs) -> None:
    faulty, single = outputs("fault/norms"), outputs("straight/fp32/TP1")
    assert values(faulty, "grad_norm") != pytest.approx(values(single, "grad_norm"), rel=1e-4)


def test_ten_lines_of_transformers_take_the_same_steps(outputs: Outputs, base: dict[str, Any]) -> None:
    losses, norms = transformers_loop(Path(base["model"]["path"]), base, outputs("straight/fp32/TP1"))
    ours = outputs("straight/fp32/TP1")
    assert values(ours, "loss") == pytest.approx(losses, rel=1e-4)
    assert values(ours, "grad_norm") == pytest.approx(norms, rel=1e-4)


def transformers_loop(model_folder: Path, base: dict[str, Any], output: Path) -> tuple[list[float], list[float]]:
    """The same steps by transformers and torch.optim.AdamW on the samples that the run read."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    decayed = [p for n, p in model.named_parameters() if p.dim() > 1 and not n.endswith(".bias")]
    others = [p for n, p in model.named_parameters() if p.dim() == 1 or n.endswith(".bias")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95), eps=1e-8
    )
    losses, norms = [], []
    for lr, batch in zip(values(output, "lr"), samples(base), strict=True):
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def samples(base: dict[str, Any]) -> Any:
    """The token ids [4, 17] of each step, cut by hand from the documents in megatron-core's shuffled order."""
    import torch

    from swift_mega.base.config import build
    from swift_mega.data.config import DataConfig
    from swift_mega.data.stream import build_streams

    cache = Path(base["data"]["train"][0]).parent / "cache"
    stream = build_streams(
        build(DataConfig, base["data"]),
        seed=1234,
        total_train_samples=STEPS * 4,
        eval_samples=0,
        vocab_size=151,
        eod=None,
        cache_dir=cache,
    ).train
    for step in range(STEPS):
        rows = [stream[step * 4 + row] for row in range(4)]
        yield torch.stack([torch.cat([row["tokens"], row["labels"][-1:]]) for row in rows])
