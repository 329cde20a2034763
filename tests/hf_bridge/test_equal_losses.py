"""Both training paths make the same of the same rows: token ids, labels and weighted loss.

Here and on every rank the rows are read and encoded anew; Megatron then computes on its layouts what transformers
computes in one process, one row a sequence and packed. From the encoded rows on each side has parts of its own: here
those of `bridge sft`, there what Megatron takes.
"""

import json
from pathlib import Path

import pytest

from tests.hf_bridge.equal_losses import by_megatron, by_transformers
from tests.model.parity import LAYOUTS
from tests.support import tiny_chat
from tests.support.distributed import Workers

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city."}}
ROWS = [
    {"query": "How are you?", "response": "I am fine, thank you!", "history": [["Hello there", "Hello!"]]},
    {
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": "The weather in Paris?"},
            {"role": "assistant", "tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": "Thought: I know it.\nFinal Answer: sunny", "loss_scale": 1.5},
        ],
    },
    {
        "messages": [
            {"role": "user", "content": "Write a number."},
            {"role": "assistant", "content": "seven", "loss": False},
            {"role": "user", "content": "Another."},
            {"role": "assistant", "content": "Thought: a small one.\nAction: write\nAction Input: 8\nObservation: ok"},
        ]
    },
    {"text": "The weather in Paris is sunny."},
]


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_equal_losses(model_type: str, tmp_path: Path, distributed: Workers) -> None:
    window = {"sliding_window": 5} if model_type == "mistral" else {}
    folder, data = tiny_chat.save(tmp_path / "model", model_type, **window), tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    expected = by_transformers(folder, data, tmp_path / "cache")
    assert expected[False].loss == pytest.approx(expected[True].loss, abs=1e-5)
    assert {3.0, 1.5, 1.0, 0.0} <= {weight for weights in expected[False].weights for weight in weights}
    assert len(expected[False].tokens) == len(ROWS) > len(expected[True].tokens)
    for layout in ("TP1", "TP2", "PP2"):
        ranks, parallel = LAYOUTS[layout]
        for found in distributed(by_megatron, ranks, folder, parallel, data, tmp_path / "cache"):
            for packed, losses in found.items():
                assert losses[:3] == expected[packed][:3]
                assert losses.loss == pytest.approx(expected[packed].loss, abs=1e-4), (layout, packed)
