"""Answers and their rewards: from functions, and from a reward model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import peft
import torch

from hf_bridge.data.row import Message, Row
from hf_bridge.methods.method import Setup
from hf_bridge.methods.rewards.registry import reward
from hf_bridge.methods.rewards.reward import Answer, Reward, question
from hf_bridge.methods.rlhf.collate import padded
from hf_bridge.methods.rlhf.examples import Tokens
from hf_bridge.methods.rlhf.given import pad_of
from hf_bridge.models.config import LoadingConfig
from hf_bridge.models.load import load_model
from hf_bridge.templates.encoding import encoder
from swift_mega.base.errors import UserError
from swift_mega.base.hub import resolve_model

SCORED_AT_ONCE = 8
"""Conversations that a reward model sees in one forward pass."""


def rewards_of(setup: Setup) -> list[Reward]:
    """Those that the configuration names, in the order of their weights.

    Raises:
        UserError: one does not exist, or there are not as many weights.
    """
    options = setup.config.reward
    found = [reward(written) for written in options.rewards]
    if options.reward_model is not None:
        found.append(reward_model(options.reward_model, setup))
    if options.reward_weights and len(options.reward_weights) != len(found):
        raise UserError(
            f"there are {len(options.reward_weights)} `reward_weights` and {counted_rewards(found)}.",
            "Give one for each; the reward model's is the last.",
        )
    return found


def counted_rewards(rewards: Sequence[Reward]) -> str:
    """Their number and names."""
    return f"{len(rewards)} rewards ({', '.join(reward.name for reward in rewards)})"


def weights_of(setup: Setup, rewards: Sequence[Reward]) -> list[float]:
    """How much each counts."""
    return setup.config.reward.reward_weights or [1.0] * len(rewards)


def answer_of(ids: Sequence[int], tokenizer: Any, ends: Sequence[int]) -> Answer:
    """What the model has written, from its tokens, the one that ended it included."""
    finished = bool(ids) and ids[-1] in ends
    text = tokenizer.decode(list(ids[:-1] if finished else ids), skip_special_tokens=False)
    return Answer(text, len(ids), finished)


def reward_model(name: str, setup: Setup) -> Reward:
    """What a model with one score says of a conversation, written in its own chat template, or else the run's.

    Args:
        name: its folder or id; of an adapter, as `--method rm` with a tuner saves it, the base is looked up in it.

    Raises:
        UserError: it is not there, or has several scores.
    """
    model, tokenizer = _loaded(name, setup.config.loading)
    if model.config.num_labels != 1:
        raise UserError(f"{name} gives {model.config.num_labels} scores.", "A reward model gives one.")
    text = setup.config.text
    declared = None if tokenizer.chat_template else text.template
    write = encoder(tokenizer, declared, agent_format=declared and text.agent_format, allow_special=text.allow_special)
    pad = pad_of(tokenizer)

    @torch.no_grad()
    def score(answers: Sequence[Answer], rows: Sequence[Row]) -> list[float | None]:
        model.to(setup.model.device)
        texts = [_conversation(write, answer, row) for answer, row in zip(answers, rows, strict=True)]
        scores = list[float | None]()
        for first in range(0, len(texts), SCORED_AT_ONCE):
            batch = padded(texts[first : first + SCORED_AT_ONCE], pad)
            inputs = {name: getattr(batch, name).to(model.device) for name in ("input_ids", "attention_mask")}
            scores += model(**inputs, use_cache=False).logits[:, 0].float().tolist()
        return scores

    return Reward("reward_model", score)


def _conversation(write: Any, answer: Answer, row: Row) -> Tokens:
    messages = (*question(row).messages, Message("assistant", answer.text))
    encoded = write.encode(msgspec.structs.replace(row, messages=messages, rejected=None))
    return Tokens(torch.tensor(encoded.input_ids, dtype=torch.int32).numpy().tobytes(), bytes(len(encoded)))


def _loaded(name: str, loading: LoadingConfig) -> tuple[Any, Any]:
    """A model with one score in evaluation mode, and its tokenizer."""
    folder = resolve_model(name, loading.revision)
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.is_file() else None
    loaded = load_model(base or str(folder), LoadingConfig(dtype=loading.dtype, num_labels=1), "seq_cls")
    model = loaded.model if base is None else peft.PeftModel.from_pretrained(loaded.model, str(Path(folder)))
    return model.requires_grad_(False).eval(), loaded.tokenizer
