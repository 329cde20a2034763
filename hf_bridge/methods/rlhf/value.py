"""Where PPO's values come from: a head on the policy, or a model of its own. Kept beside the policy's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_bridge.methods.method import Setup
from hf_bridge.models.load import load_model
from swift_mega.base.errors import UserError

NAME = "value"
"""As which it hangs on the policy, so that it is trained, moved and spread over processes with it."""

FILE = "value.safetensors"


class Head(nn.Module):
    """A number from the policy's last hidden state, at first 0 everywhere."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[B, K, H] → [B, K] float32."""
        values: torch.Tensor = self.linear(hidden.float()).squeeze(-1)
        return values


class Own(nn.Module):
    """A number for each token from a model of its own, all of which is trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The last K tokens of `inputs` ([B, S]) → [B, K] float32; of `hidden` only K is used."""
        values: torch.Tensor = self.model(**inputs, use_cache=False).logits[:, -hidden.shape[1] :, 0].float()
        return values


def attach(setup: Setup) -> None:
    """Hang what gives values on the policy.

    Raises:
        UserError: the value model has another vocabulary.
    """
    policy, chosen = setup.model, setup.config.ppo.value_model
    if chosen is None:
        policy.add_module(NAME, Head(policy.get_input_embeddings().embedding_dim))
        return
    model = load_model(chosen, replace(setup.config.loading, num_labels=1), "token_cls").model
    sizes = [each.config.get_text_config().vocab_size for each in (policy, model)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the value model knows {sizes[1]:,} tokens and the policy {sizes[0]:,}.",
            "It reads the policy's tokens and needs its vocabulary.",
        )
    policy.add_module(NAME, Own(model))


@contextmanager
def apart(policy: Any) -> Iterator[nn.Module]:
    """Inside, the policy is without what gives values, which is yielded: so it is saved and loaded like any other."""
    own: nn.Module = getattr(policy, NAME)
    delattr(policy, NAME)
    try:
        yield own
    finally:
        policy.add_module(NAME, own)


def split(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights that were gathered from several processes: the policy's, and those that give values."""
    own = {name.removeprefix(f"{NAME}."): tensor for name, tensor in state.items() if name.startswith(f"{NAME}.")}
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{NAME}.")}, own


def save(folder: Path, state: dict[str, Any]) -> None:
    """Beside the policy's weights."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / FILE)


def load(own: nn.Module, folder: Path) -> None:
    """From beside the policy's weights.

    Raises:
        UserError: it is not there.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} has no {FILE}.", "Resume from a checkpoint that PPO has written.")
    own.load_state_dict(load_file(folder / FILE))
