"""LongLoRA (Chen et al., "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models", arXiv:2309.12307).

LoRA, with the embeddings and the norms trained whole besides, and in training shifted sparse attention (S²): tokens
attend only within groups of G, which for the second half of the heads are shifted by G/2. For token i of S (rounded up
to a multiple of G) in head h of H

    group(i, h) = ⌊((i − s_h) mod S) ÷ G⌋,   s_h = 0 for h < H/2, G/2 for the others,

and i sees j if group(i, h) = group(j, h) and the model's own mask (causal, padding, window, packed rows) lets it. The
paper's code puts a plain triangle on every group, also on the one in which the shift brings the sequence's end before
its beginning, where the first tokens then see the last; here the mask goes by true positions, so none sees the future.

Outside training, and where a cache has more keys than there are queries, attention is full.
"""

import copy
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.trainer_callback import TrainerCallback

from hf_bridge.tuners import anatomy
from hf_bridge.tuners.activation import Activation
from hf_bridge.tuners.peft_tuners import TUNERS as OF_PEFT
from hf_bridge.tuners.peft_tuners import PeftAttached
from hf_bridge.tuners.shifted_attention import shifted_sparse_attention
from hf_bridge.tuners.tuner import Tuner
from swift_mega.base.errors import UserError

PREFIX = "s2_"
"""Before the name of the attention that is full."""

UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments of attention that the groups' attention has no place for."""

_LIVE: "weakref.WeakSet[LongLoRA]" = weakref.WeakSet()


@dataclass
class LongLoRAConfig(LoraConfig):  # type: ignore[misc]
    """LoRA's options, and the groups."""

    group_ratio: float = 0.25
    """G ÷ S; G is rounded up to an even number."""

    train_embeddings_and_norms: bool = True
    """What the paper calls LoRA⁺, and needs for long contexts."""


class LongLoRA(PeftAttached):
    """LoRA on a model whose attention is sparse while it is trained."""

    def __init__(self, model: nn.Module, name: str, config: LongLoRAConfig, activation: Activation) -> None:
        config = copy.deepcopy(config)
        if not 0 < config.group_ratio <= 1:
            raise UserError(f"longlora: group_ratio is {config.group_ratio}.", "It must be above 0, and 1 at most.")
        inner = anatomy.plain(model)
        self._text = anatomy.text_config(model)
        _register(_full_attention(inner, self._text))
        if config.train_embeddings_and_norms:
            config.modules_to_save = sorted({*(config.modules_to_save or []), *embeddings_and_norms(inner)})
            config.ensure_weight_tying = bool(getattr(self._text, "tie_word_embeddings", False))
        super().__init__(model, name, config, activation)
        self.activation = activation
        if not self._text._attn_implementation.startswith(PREFIX):
            self._text._attn_implementation = PREFIX + self._text._attn_implementation
        _LIVE.add(self)

    def attends(self, module: nn.Module) -> bool:
        """Whether attention is sparse in `module` for the thread that asks."""
        return getattr(module, "config", None) is self._text and module.training and self.name in self.activation

    def group(self, tokens: int) -> int:
        """G for a sequence of so many tokens."""
        return max(2, 2 * -int(-tokens * self.config.group_ratio // 2))

    def callbacks(self) -> list[Any]:
        return [*super().callbacks(), StillSparse(self._text)]

    def let_go(self) -> None:
        _LIVE.discard(self)
        if not any(tuner._text is self._text for tuner in _LIVE):
            self._text._attn_implementation = self._text._attn_implementation.removeprefix(PREFIX)

    def detach(self) -> None:
        self.let_go()
        super().detach()


class StillSparse(TrainerCallback):  # type: ignore[misc]
    """Refuses to train a model whose attention somebody has replaced since, as sequence parallelism does."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if not self.config._attn_implementation.startswith(PREFIX):
            raise UserError(
                f"longlora: the model's attention is `{self.config._attn_implementation}` now, which is not in groups.",
                "Train without sequence parallelism, or with `lora`.",
            )


def embeddings_and_norms(model: nn.Module) -> set[str]:
    """Ends of names of the embeddings of tokens and of all norms."""
    wanted = anatomy.embeddings(model)
    return {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if module is wanted or ("norm" in type(module).__name__.lower() and not list(module.children()))
    }


def _full_attention(model: Any, config: Any) -> str:
    """The name of the model's attention.

    Raises:
        UserError: it cannot be replaced, or its masks are none that groups can be cut from.
    """
    used = str(getattr(config, "_attn_implementation", None)).removeprefix(PREFIX)
    if not getattr(model, "_can_set_attn_implementation", lambda: False)():
        raise UserError(
            f"longlora: {type(model).__name__} does not ask transformers' AttentionInterface for its attention.",
            "Use `lora`.",
        )
    if used not in ("sdpa", "eager"):
        raise UserError(
            f"longlora takes the place of `sdpa` or `eager` attention, and the model was loaded with `{used}`.",
            "Load it with attn_implementation=sdpa; within groups it uses torch's fast kernels.",
        )
    return used


def _register(full: str) -> None:
    AttentionInterface.register(PREFIX + full, _ATTENTION[full])
    AttentionMaskInterface.register(PREFIX + full, ALL_MASK_ATTENTION_FUNCTIONS[full])


def _attend(
    full: Callable[..., Any],
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention function: [B, H, S, D] → ([B, S, H, D], None)."""
    tuner = next((tuner for tuner in _LIVE if tuner.attends(module)), None)
    if tuner is None or key.shape[2] != query.shape[2]:
        return full(module, query, key, value, mask, **options)  # type: ignore[no-any-return]
    for name in UNSUPPORTED:
        if options.get(name) is not None:
            raise UserError(
                f"longlora: {type(module).__name__} attends with `{name}`, which S² has not.", "Use `lora`."
            )
    if options.get("is_causal", getattr(module, "is_causal", True)) is False or (
        mask is not None and mask.shape[1] != 1
    ):
        raise UserError(
            f"longlora: {type(module).__name__} is not causal, or masks its heads differently.", "Use `lora`."
        )
    key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
    group = tuner.group(query.shape[2])
    out = shifted_sparse_attention(
        query, key, value, mask, group, options.get("scaling"), options.get("dropout", 0.0) if module.training else 0.0
    )
    return out.transpose(1, 2).contiguous(), None


def _over_sdpa(module: nn.Module, *args: Any, **options: Any) -> Any:
    return _attend(AttentionInterface()["sdpa"], module, *args, **options)


def _over_eager(module: nn.Module, *args: Any, **options: Any) -> Any:
    # Every model of transformers has an eager attention of its own, beside its modules.
    return _attend(sys.modules[type(module).__module__].eager_attention_forward, module, *args, **options)


_ATTENTION = {"sdpa": _over_sdpa, "eager": _over_eager}


def _attach(model: nn.Module, name: str, config: Any, activation: Activation) -> LongLoRA:
    return LongLoRA(model, name, config, activation)


_LORA = next(one for one in OF_PEFT if one.name == "lora")
TUNERS = [Tuner("longlora", LongLoRAConfig, "LongLoRA, arXiv:2309.12307", _attach, _LORA.defaults)]
