"""Evaluation that lets the model answer: its last turn against the row's, by ROUGE-L (F1) and by exact match.

Greedy, so that the same weights give the same figures; the answer may have as many tokens as the row's and half as
many again, and at least `FEWEST`.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from hf_bridge.data.row import Row
from hf_bridge.data.rows import Rows
from hf_bridge.methods.rouge import rouge_l
from hf_bridge.methods.token_trainer import Batch
from hf_bridge.templates.encoding import Encoder
from swift_mega.base.console import progress
from swift_mega.base.errors import UserError

FEWEST = 16
"""Tokens that an answer may have at least."""


@dataclass(frozen=True)
class Question:
    """What the model is asked.

    Attributes:
        prompt: tokens up to its answer.
        answer: of the row.
    """

    prompt: list[int]
    answer: list[int]


def question(encoder: Encoder, row: Row) -> Question:
    """The last answer of a row, and all before it."""
    before = tuple(msgspec.structs.replace(message, loss=False) for message in row.messages[:-1])
    last = msgspec.structs.replace(row.messages[-1], loss=True)
    encoded = encoder.encode(msgspec.structs.replace(row, messages=(*before, last), rejected=None))
    start = next(number for number, weight in enumerate(encoded.loss_weights) if weight)
    trained = [token for token, weight in zip(encoded.input_ids, encoded.loss_weights, strict=True) if weight]
    return Question(encoded.input_ids[:start], trained)


def check_generation(rows: Rows) -> None:
    """Before a run that asks its model.

    Raises:
        UserError: `rouge-score` is not installed, or a row does not end in an answer to something.
    """
    rouge_l("a", "a")
    for number in range(len(rows)):
        messages = rows[number].messages
        if messages[-1].role != "assistant" or len(messages) == 1:
            raise UserError(
                f"{rows.where(number)} does not end in an answer to something.",
                "Without `--predict-with-generate` it may be evaluated on.",
            )


def scores(model: Any, encoder: Encoder, rows: Rows, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """[3]: sums of ROUGE-L and of exact matches of what the model answers to every `world_size`-th row, and their
    number."""
    total, tokenizer = torch.zeros(3), encoder.tokens.tokenizer
    mine = range(rank, len(rows), world_size)
    with progress(len(mine), "answer", "row") as bar:
        for number in mine:
            asked = question(encoder, rows[number])
            texts = [
                tokenizer.decode(ids, skip_special_tokens=True).strip()
                for ids in (answer(model, asked, tokenizer), asked.answer)
            ]
            total += torch.tensor([rouge_l(*texts), texts[0] == texts[1], 1.0])
            bar.update(1)
    return total


def answer(model: Any, asked: Question, tokenizer: Any) -> list[int]:
    """Greedy tokens behind the prompt, up to the one that ends the row's answer or the tokenizer's last."""
    batch: Batch = {"input_ids": torch.tensor([asked.prompt], device=model.device)}
    ends = {tokenizer.eos_token_id, asked.answer[-1] if asked.answer[-1] in tokenizer.all_special_ids else None}
    with torch.no_grad():
        made = model.generate(
            **batch,
            attention_mask=torch.ones_like(batch["input_ids"]),
            max_new_tokens=max(FEWEST, len(asked.answer) * 3 // 2),
            do_sample=False,
            eos_token_id=sorted(ends - {None}),
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
        )
    tokens: list[int] = made[0, len(asked.prompt) :].tolist()
    return tokens
