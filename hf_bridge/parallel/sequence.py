"""Sequence parallelism: several processes share each sequence, for any model of transformers that attends by interface.

Each process holds some tokens of every layer's activations; only attention sees others. So the model is not touched: an
attention function and its mask function are registered with transformers, and the batches that a process gets hold its
tokens alone. What transformers and accelerate bring themselves does not do this job: accelerate's context parallelism
needs FSDP2 and a GPU and knows no mask but the causal one; its Ulysses needs DeepSpeed's engine, knows no weights of
tokens in the loss, and is not there in evaluation.

    share = join(config)                        # None where each process has sequences of its own
    share.attach(model)                         # refuses what it cannot do
    collate = share.collator(collate)           # batches → this process's tokens of them
    loader = share.loader(loader)               # the processes of a group get the same rows

Each process's loss is the weighted sum over its tokens; divided by the weights of all processes, these add up to the
loss of the whole batch, and the gradients to its gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from hf_bridge.parallel.config import ParallelConfig
from hf_bridge.parallel.layout import Batch, Layout
from hf_bridge.parallel.tiles import Plan, Visible, attention, plan
from hf_bridge.parallel.ulysses import check_heads, ulysses
from swift_mega.base.errors import UserError

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Of transformers' `layer_types`, those in which tokens meet in attention only."""


def join(config: ParallelConfig) -> "SequenceParallel | None":
    """This process's place; consecutive ranks share a sequence. Once the process group is there, on every rank."""
    size = config.sequence_parallel_size
    if size == 1:
        return None
    new_subgroups: Any = dist.new_subgroups
    group, _ = new_subgroups(size)
    return SequenceParallel(Layout(config.sequence_parallel_mode, dist.get_rank(group), size), group)


@dataclass(frozen=True)
class SequenceParallel:
    """The processes that share each sequence."""

    layout: Layout
    group: Any

    def attach(self, model: Any) -> None:
        """Let a model attend across processes where its batches are split; other batches it computes as ever.

        Args:
            model: of transformers, or a PeftModel around one.

        Raises:
            UserError: it could not be right on a part of the sequence.
        """
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        _check(base, self.layout)
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise UserError(
                "tokens that a tuner puts in front of each sequence have no place among processes that share it.",
                "Take a tuner of weights, such as `lora`, or `--sequence-parallel-size 1`.",
            )
        split = _Split(self)
        AttentionInterface.register(self.layout.mode, _attention)
        AttentionMaskInterface.register(self.layout.mode, split.mask)
        base.set_attn_implementation(self.layout.mode)
        base.register_forward_pre_hook(split.begin, with_kwargs=True, prepend=True)
        base.register_forward_hook(split.end, with_kwargs=True, always_call=True)

    def collator(self, collate: Callable[[list[Any]], Batch]) -> Callable[[list[Any]], Batch]:
        """What makes this process's part of a batch from rows, for a function that makes whole batches."""
        return _SplitCollator(collate, self.layout)

    def loader(self, loader: Any) -> Any:
        """A loader that accelerate has prepared, giving the processes of a group the same rows.

        To it the whole job is there for different rows, so each group is told to be one process.
        """
        shard, groups = loader.batch_sampler, dist.get_world_size() // self.layout.size
        shard.num_processes, shard.process_index = groups, dist.get_rank() // self.layout.size
        shard.even_batches = groups > 1  # nobody waits for a process whose last batch is smaller
        return loader

    def gather(self, rows: Tensor) -> Tensor:
        """[B, …] sums of each process over its tokens → [all B, …] sums over all, in the order of the data."""
        rows = rows.clone()
        dist.all_reduce(rows, group=self.group)
        everywhere = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, rows)
        return torch.cat(everywhere[:: self.layout.size])


@dataclass(frozen=True)
class _SplitCollator:
    collate: Callable[[list[Any]], Batch]
    layout: Layout

    def __call__(self, rows: list[Any]) -> Batch:
        return self.layout.split(self.collate(rows))


def _check(model: Any, layout: Layout) -> None:
    """Refuse models that compute something other than attention from several tokens, or from their number."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    attends = getattr(model.config, "_attn_implementation", None)
    reasons = {
        f"it has layers of type {', '.join(sorted(kinds))}, through which a state runs along the sequence": bool(kinds),
        "a state runs along the sequence in it": getattr(model, "_is_stateful", False),
        "its attention is not exchangeable": not (
            getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_sdpa", False)
        ),
        "its rotary embedding depends on the longest position of the batch": bool(ropes & {"dynamic", "longrope"}),
        f"it was loaded with `--attn-implementation {attends}`, in whose place attention between processes comes": (
            attends not in ("sdpa", "eager", layout.mode)
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(
                f"{type(model).__name__} cannot share a sequence among processes: {reason}.",
                "Take `--sequence-parallel-size 1`, and ZeRO or FSDP2 where memory is short.",
            )
    if layout.mode == "ulysses":
        check_heads(config.num_attention_heads, layout.size)


@dataclass
class _Mask:
    """What a layer's queries see of the whole sequence; goes through the model in the place of a mask."""

    share: SequenceParallel
    segments: Tensor
    visible: Visible

    @cached_property
    def tiles(self) -> Plan:
        layout, length = self.share.layout, self.segments.shape[1]
        sources = [torch.arange(length)]
        queries = sources[0]
        if layout.mode == "ring":
            sources = [layout.positions(length, (layout.rank - step) % layout.size) for step in range(layout.size)]
            queries = sources[0]
        return plan(queries, sources, self.segments, self.visible, self.segments.device)

    @cached_property
    def plain(self) -> bool:
        """Whether it is the causal mask: one row in each sequence and padding, if any, behind it."""
        one_row = self.segments.max() <= 1 and (self.segments.diff() <= 0).all()
        return self.visible is causal_mask_function and bool(one_row)


class _Split:
    """The segments of the batch that the model is computing; transformers' mask functions are not told of them."""

    def __init__(self, share: SequenceParallel) -> None:
        self.share = share
        self.segments: Tensor | None = None

    def begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Take the segments out of what the model is given."""
        self.segments = kwargs.pop("segments", None)
        if self.segments is not None:
            tokens = kwargs["input_ids"]
            # With a mask transformers does not look for packed rows in the positions, which jump where tokens are
            # at other processes. What it says, that all tokens are there, is true.
            kwargs |= {"attention_mask": torch.ones_like(tokens), "use_cache": False}
        return args, kwargs

    def end(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Whatever comes next is another batch."""
        self.segments = None

    def mask(self, *, mask_function: Visible, allow_is_causal_skip: bool = True, **kwargs: Any) -> Any:
        """transformers asks for the mask of a kind of layers."""
        if self.segments is None:
            return sdpa_mask(mask_function=mask_function, allow_is_causal_skip=allow_is_causal_skip, **kwargs)
        if not allow_is_causal_skip:
            raise UserError(
                "the model has a mask that depends on more than positions, as around images.",
                "Such a sequence cannot be shared: take `--sequence-parallel-size 1`.",
            )
        return _Mask(self.share, self.segments, mask_function)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: [B, heads, tokens, head size] in, [B, tokens, heads, head size] out."""
    odd = {"attention dropout": dropout > 0} | {
        name: kwargs.get(name) is not None for name in ("s_aux", "position_bias")
    }
    if not isinstance(attention_mask, _Mask):
        if softcap is not None:
            raise UserError("SDPA has no softcap of scores.", "Evaluate without sequence parallelism.")
        return cast(
            "tuple[Tensor, None]",
            sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs),
        )
    if found := [name for name, given in odd.items() if given]:
        raise UserError(
            f"{type(module).__name__} has {' and '.join(found)}, which attention between processes has not.",
            "Take `--sequence-parallel-size 1`.",
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask, share = attention_mask, attention_mask.share
    if share.layout.mode == "ring":
        out = attention(query, key, value, mask.tiles, share.group, scale, softcap)
    elif mask.plain and softcap is None:
        causal = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True, scale=scale, enable_gqa=True)
        out = ulysses(query, key, value, share.group, causal)
    else:
        tiled = partial(attention, tiles=mask.tiles, scale=scale, softcap=softcap)
        out = ulysses(query, key, value, share.group, tiled)
    return out.transpose(1, 2).contiguous(), None
