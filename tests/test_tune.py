"""`make tune`: its data, its judge, and all of it with a small model."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import dialogues, tune, tune_judge
from examples.dialogues import Pair
from tests.support import tiny_chat

GIVEN = [
    Pair(f"{word} {number}?", f"{word} it is, {number}.") for word in ("red", "Red", "blue") for number in range(10)
]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_no_question_is_in_both_halves() -> None:
    train, held = dialogues.split(GIVEN)
    assert sorted(train + held) == sorted(GIVEN) and held
    assert not {one.question.lower() for one in train} & {one.question.lower() for one in held}


def test_the_worse_answer_is_one_to_another_question() -> None:
    for pair, worse in dialogues.preferences(GIVEN):
        asked = [other.question.lower() for other in GIVEN if other.answer == worse]
        assert asked and pair.question.lower() not in asked


def test_the_dialogues_of_the_package() -> None:
    if importlib.util.find_spec("chatterbot_corpus") is None:
        pytest.skip("the package chatterbot-corpus is not installed")
    pairs = list(dialogues.pairs())
    assert len(pairs) > 500
    assert Pair("What language are you written in?", "Python.") in pairs


def chat_model(folder: Path) -> Path:
    """A tiny model that ends its answers with <|im_end|>."""
    from transformers import AutoTokenizer

    tiny_chat.save(folder, initializer_range=0.02)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.eos_token = CHATML, "<|im_end|>"
    tokenizer.save_pretrained(folder)
    return folder


def test_the_judge_computes_what_it_says(tmp_path: Path) -> None:
    """Log-probabilities of answers in a padded batch are those of each conversation alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = chat_model(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    said = [tune_judge.tokens_of(tokenizer, one.question * n, one.answer) for n, one in enumerate(GIVEN[:4], 1)]
    for (ids, start), score in zip(said, tune_judge.scored(model, said), strict=True):
        assert tokenizer.decode(ids[:start]).endswith("assistant\n") and ids[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        wanted = -torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum")
        assert score.tokens == len(ids) - start
        assert score.log_probability == pytest.approx(float(wanted), abs=1e-4)


def judged(loss: float, margin: float) -> dict[str, Any]:
    return {"loss": loss, "margin": margin}


def test_promises() -> None:
    kept = tune.check([judged(4.0, 1.0), judged(3.0, 2.0), judged(3.1, 5.0)], (4.00001, 3.0))
    assert all(kept.values()) and "by 1.000" in next(iter(kept)) and "by 3.00 nats" in list(kept)[2]
    broken = tune.check([judged(3.0, 1.0), judged(3.1, 2.0), judged(3.1, 1.0)], (3.0, 3.2))
    assert not any(broken.values())


@pytest.mark.slow
def test_every_promise_is_kept_by_a_small_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, model = tmp_path / "tune", chat_model(tmp_path / "model")
    (folder / "data").mkdir(parents=True)
    for name in ("train", "held"):
        pairs = [{"prompt": one.question, "chosen": one.answer, "rejected": "{} {}"} for one in GIVEN]
        chats = [{"query": one.question, "response": one.answer} for one in GIVEN]
        for suffix, rows in (("", chats), ("-pairs", pairs)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "data" / f"{name}{suffix}.jsonl").write_text(lines, encoding="utf-8")
    for name in ("tune", "prefer"):
        text = Path("examples", f"{name}.yaml").read_text(encoding="utf-8")
        text = text.replace("demo/tune", str(folder)).replace("demo/smollm2", str(model)).replace("5.0e-4", "1.0e-2")
        cached = text.replace("data:\n", f"data:\n  cache_dir: {tmp_path / 'cache'}\n  workers: 1\n")
        (tmp_path / f"{name}.yaml").write_text(cached, encoding="utf-8")
    nothing = ("python", "-c", "pass")
    small = tune.Tuning(tmp_path / "tune.yaml", tmp_path / "prefer.yaml", folder, nothing, nothing)
    code = tune.run(small)
    output = capfd.readouterr()
    assert code == 0, output.out[-3000:] + output.err[-3000:]
    assert output.out.count("✓") == 3 and "✗" not in output.out
    assert tune.run(small) == 0
    assert capfd.readouterr().out.count("done already") == len(tune.steps(small))
