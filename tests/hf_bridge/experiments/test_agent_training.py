"""Training on an agent's steps with and without the loss scale of Table 14: what the run reports is the weighted loss.

The weights are written beside the pieces of the text here, so that nothing of `hf_bridge.templates.loss_scale` decides
what is expected.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_bridge.data.config import RowsConfig
from hf_bridge.methods.config import TrainingConfig, TuneConfig
from hf_bridge.methods.sft import sft
from hf_bridge.templates.config import TemplateConfig
from swift_mega.base import metrics
from tests.support import tiny_chat

Pieces = list[tuple[str, float]]

STEPS: list[tuple[str, Pieces]] = [
    (
        "The weather in Paris?",
        [
            ("Thought: I have to look.\n", 1),
            ("Action: get_weather\n", 3),
            ('Action Input: {"city": "Paris"}\n', 3),
            ("Observation:", 2),
            (" sunny\nThought: I know it.\n", 1),
            ("Action: Finish\n", 3),
            ('Action Input: {"return_type": "give_answer", "final_answer": "It is sunny."}', 3),
        ],
    ),
    ("Hello there", [("How are you?", 1)]),
    ("Answer the tool selection query.", [("get_weather", 3)]),
]
"""Questions, and answers in pieces with their weights."""


def expected(folder: Path, scaled: bool) -> float:
    """Σ w·ce ÷ Σ w over all rows, by transformers; a token across two pieces has the heavier one's weight."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    total = weight = 0.0
    for question, pieces in STEPS:
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        characters = [0.0] * len(prompt)
        for text, value in [*pieces, ("<|im_end|>", 1.0)]:
            characters += [value if scaled else 1.0] * len(text)
        text = prompt + "".join(piece for piece, _ in pieces) + "<|im_end|>"
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(found["input_ids"])
        weights = torch.tensor([max(characters[first:last], default=0.0) for first, last in found["offset_mapping"]])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        total, weight = total + float((losses * weights[1:]).sum()), weight + float(weights[1:].sum())
    return total / weight


def reported(folder: Path, output: Path, loss_scale: str) -> list[dict[str, Any]]:
    """The metrics of one step over all rows."""
    data = output.with_suffix(".jsonl")
    rows = [{"query": question, "response": "".join(text for text, _ in pieces)} for question, pieces in STEPS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = TuneConfig(
        model=str(folder),
        output=str(output),
        tuner="full",
        data=RowsConfig(
            dataset=[str(data)], val_dataset=[str(data)], cache_dir=str(output.parent / "cache"), workers=1
        ),
        text=TemplateConfig(template="chatml", loss_scale=loss_scale),
        train=TrainingConfig(
            max_steps=1, per_device_train_batch_size=len(STEPS), gradient_accumulation_steps=1, tensorboard=False
        ),
    )
    sft(config)
    return metrics.read(output)


def test_the_weights_are_in_the_loss(tmp_path: Path) -> None:
    folder = tiny_chat.save(tmp_path / "model")
    losses = {}
    for loss_scale in ("default", "agent"):
        losses[loss_scale] = wanted = expected(folder, scaled=loss_scale == "agent")
        lines = reported(folder, tmp_path / loss_scale, loss_scale)
        assert next(line["eval/loss"] for line in lines if "eval/loss" in line) == pytest.approx(wanted, abs=1e-5)
        assert next(line["loss"] for line in lines if "loss" in line) == pytest.approx(wanted, abs=1e-5)
    assert abs(losses["default"] - losses["agent"]) > 1e-3
