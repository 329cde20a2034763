"""What transformers makes of a tuned model: its loss on held-out answers, and how much it prefers them to worse ones.

    python -m examples.tune_judge demo/smollm2 demo/tune/data demo/tune/before.json

Nothing of hf_bridge is used here: rows are read as JSON and become tokens by the tokenizer's own chat template.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from swift_mega.base import failures
from swift_mega.base.console import progress, say

QUESTIONS = ("What is AI?", "Do you like music?")
"""Answered greedily."""
NEW_TOKENS = 24
BATCH = 10


class Score(NamedTuple):
    """What a model makes of one answer."""

    log_probability: float
    tokens: int


def judge(model_folder: Path, data: Path) -> dict[str, Any]:
    """The figures, of the rows of `data`/held-pairs.jsonl.

    Returns:
        loss: mean over all tokens of the right answers, that which ends them included.
        margin: mean log-probability of the right answer minus that of the worse one, in nats an answer.
        preferred: share of pairs in which the right answer is the likelier one.
        answers: to `QUESTIONS`.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    rows = [json.loads(line) for line in (data / "held-pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    examples = [tokens_of(tokenizer, row["prompt"], row[name]) for name in ("chosen", "rejected") for row in rows]
    scores = scored(model, examples)
    right, worse = scores[: len(rows)], scores[len(rows) :]
    margins = [one.log_probability - other.log_probability for one, other in zip(right, worse, strict=True)]
    return {
        "loss": -sum(one.log_probability for one in right) / sum(one.tokens for one in right),
        "tokens": sum(one.tokens for one in right),
        "margin": statistics.mean(margins),
        "preferred": statistics.mean(margin > 0 for margin in margins),
        "answers": {question: answer(model, tokenizer, question) for question in QUESTIONS},
    }


def tokens_of(tokenizer: Any, question: str, text: str) -> tuple[list[int], int]:
    """Token ids of a conversation up to the end of the answer, and where the answer begins."""
    asked = [{"role": "user", "content": question}]
    options = {"tokenize": True, "return_dict": False}
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, **options)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": text}], **options)
    assert whole[: len(prompt)] == prompt, "the template writes the question differently before an answer"
    end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
    return whole[:end], len(prompt)


def scored(model: Any, examples: list[tuple[list[int], int]]) -> list[Score]:
    """Each answer's log-probability given its question, in the order of `examples`."""
    import torch

    order = sorted(range(len(examples)), key=lambda number: len(examples[number][0]))
    scores: dict[int, Score] = {}
    with torch.no_grad(), progress(len(order), "judge", "answer") as bar:
        for first in range(0, len(order), BATCH):
            numbers = order[first : first + BATCH]
            length = max(len(examples[number][0]) for number in numbers)
            ids = torch.tensor([examples[n][0] + [0] * (length - len(examples[n][0])) for n in numbers])
            # Padding stands behind, where a causal model does not look from what is before it.
            begin = min(examples[number][1] for number in numbers)
            logits = model(ids, logits_to_keep=length - begin + 1).logits[:, :-1].double()
            found = logits.log_softmax(-1).gather(2, ids[:, begin:, None])[..., 0]
            for row, number in enumerate(numbers):
                tokens, start = examples[number]
                said = found[row, start - begin : len(tokens) - begin]
                scores[number] = Score(float(said.sum()), len(tokens) - start)
            bar.update(len(numbers))
    return [scores[number] for number in range(len(examples))]


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """What the model says, greedily."""
    asked = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return str(tokenizer.decode(said, skip_special_tokens=True))


def main(model: Path, data: Path, target: Path) -> None:
    """Judge, print and write."""
    found = judge(model, data)
    say(f"held-out loss {found['loss']:.4f} over {found['tokens']:,} tokens, margin {found['margin']:.2f} nats")
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(target)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    with failures.explained() as outcome:
        main(*map(Path, sys.argv[1:]))
    sys.exit(outcome.exit_code)
