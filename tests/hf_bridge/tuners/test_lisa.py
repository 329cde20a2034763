"""LISA: which layers are trained when, what the optimizer keeps, and that a resumed run is the same run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_bridge.tuners.lisa import Lisa
from swift_mega.base.errors import UserError
from tests.hf_bridge.tuners import own
from tests.support import tiny

OPTIONS = {"activated_layers": 2, "step_interval": 3}


def trainer(model: Any, attached: Lisa, folder: Path, **options: Any) -> Any:
    import transformers

    rows = [{"input_ids": row, "labels": row} for row in tiny.tokens(101, batch=8)]
    given = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(model, given, train_dataset=rows, callbacks=attached.callbacks())


def lisa(tiny_model: Callable[..., Path], **options: Any) -> tuple[Any, Lisa]:
    model = own.load(tiny_model("llama"))
    attached = own.attach(model, "lisa", **{**OPTIONS, **options})
    assert isinstance(attached, Lisa)
    return model, attached


def test_only_drawn_layers_and_what_is_outside_them_change(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    import transformers

    model, attached = lisa(tiny_model)
    seen = []

    class Look(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.before = own.bits(model)

        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any, **_: Any) -> None:
            after = model.state_dict()
            changed = {key for key in after if not torch.equal(after[key], self.before[key])}
            layers = sorted({int(key.split(".")[2]) for key in changed if ".layers." in key})
            seen.append((layers, len(changed)))
            assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= changed
            # Moments of the parameters that are trained now, and of no others.
            assert len(optimizer.state) == len(changed)

    run = trainer(model, attached, tmp_path, max_steps=7, save_strategy="no")
    run.add_callback(Look())
    run.train()
    assert seen == [(attached.drawn(step), 2 * 9 + 3) for step in range(7)]
    assert attached.drawn(0) == attached.drawn(2) and len({tuple(attached.drawn(3 * i)) for i in range(20)}) > 3
    counts = torch.bincount(torch.tensor([attached.drawn(3 * i) for i in range(400)]).flatten())
    assert len(counts) == 4 and counts.min() > 150  # γ/N = ½ for every layer


@pytest.mark.parametrize("saved", [4, 6])
def test_a_resumed_run_is_the_same_run(tiny_model: Callable[..., Path], tmp_path: Path, saved: int) -> None:
    """Saved within an interval, and between two."""
    model, attached = lisa(tiny_model)
    trainer(model, attached, tmp_path / "a", max_steps=8, save_strategy="no").train()
    other, again = lisa(tiny_model)
    options = {"max_steps": 8, "save_steps": saved, "save_strategy": "steps"}
    trainer(other, again, tmp_path / "b", **options).train()
    resumed, third = lisa(tiny_model)
    options |= {"save_strategy": "no"}
    checkpoint = str(tmp_path / "b" / f"checkpoint-{saved}")
    trainer(resumed, third, tmp_path / "b", **options).train(resume_from_checkpoint=checkpoint)
    after = resumed.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in model.state_dict().items())


def test_with_gradient_accumulation_and_checkpointing(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model, attached = lisa(tiny_model, step_interval=1)
    before = own.bits(model)
    options = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "save_strategy": "no"}
    trainer(model, attached, tmp_path, max_steps=1, **options).train()
    after = model.state_dict()
    changed = {
        int(key.split(".")[2]) for key in after if ".layers." in key and not torch.equal(after[key], before[key])
    }
    assert sorted(changed) == attached.drawn(0)


def test_more_layers_than_there_are(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"activated_layers is 5, and the model has 4"):
        lisa(tiny_model, activated_layers=5)
