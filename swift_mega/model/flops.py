"""How many floating point operations training takes.

Convention of every TFLOP/s and MFU we print:
- *model* FLOPs: what the mathematics needs. Recomputed activations and padded vocabulary do not count.
- a multiplication and an addition are two operations; only matrix products count (norms, RoPE, softmax, convolutions
  and the embedding's look-up are below one percent together);
- of experts those count that a token is sent to, and all that every token sees;
- attention is counted causal: position i (from 0) attends to i + 1 tokens, or to its window. A count
  over the full square, as in PaLM's paper, gives larger numbers for the same speed. A gated delta net is counted as
  the recurrence that it is, three products of each head's state with a vector, however it is computed;
- the product with the vocabulary (logits) counts; backward is twice forward.
"""

import math
from dataclasses import replace

from converters.config_table import MegatronArguments
from converters.families._common import EMBEDDING, OUTPUT
from converters.family import Family, sizes
from converters.rules import Rule, Sizes


def flops_per_token(family: Family, arguments: MegatronArguments, sequence_length: int) -> float:
    """FLOPs of forward and backward per token of a sequence of that many tokens, whole model, mean over positions."""
    forward = 2 * (_weights(family, arguments) + _mixed(arguments, sequence_length))
    return 3.0 * forward


def _weights(family: Family, arguments: MegatronArguments) -> float:
    """Elements of the matrices that a token is multiplied with."""
    named = sizes(arguments, arguments.vocab_size)
    trained = replace(arguments, mtp_num_layers=0)
    rules = {rule.megatron: rule for rule in family.rules_for(trained)}
    # What is tied to the embedding is multiplied as an output layer is; the embedding itself is looked up.
    output = rules.pop(OUTPUT, rules.pop(EMBEDDING))
    rules.pop(EMBEDDING, None)
    return sum(_met(rule, arguments, named) for rule in (output, *rules.values()))


def _met(rule: Rule, arguments: MegatronArguments, named: Sizes) -> float:
    """Elements of one tensor that a token meets; none where it is no matrix."""
    shape = rule.shape(named)
    if len(shape) - len(rule.stack) != 2:
        return 0.0
    share = arguments.moe_router_topk / named["expert"] if "expert" in rule.stack else 1.0
    return math.prod(shape) * share


def _mixed(arguments: MegatronArguments, sequence_length: int) -> float:
    """Multiplications of a token with what its sequence has before it."""
    heads, query, value = arguments.num_attention_heads, arguments.kv_channels, arguments.kv_channels
    if arguments.kv_lora_rank is not None:
        query = (arguments.qk_head_dim or 0) + (arguments.qk_pos_emb_head_dim or 0)
        value = arguments.v_head_dim or 0
    attended = sum(_attended(layer, arguments, sequence_length) for layer in arguments.layers("attention"))
    state = (arguments.linear_key_head_dim or 0) * (arguments.linear_value_head_dim or 0)
    recurrent = len(arguments.layers("linear attention")) * (arguments.linear_num_value_heads or 0) * 3 * state
    return attended * heads * (query + value) + recurrent


def _attended(layer: int, arguments: MegatronArguments, sequence_length: int) -> float:
    """Tokens a position attends to in `layer`, itself included, mean over the positions."""
    flags = arguments.window_attn_skip_freq
    if arguments.window_size is None or (flags is not None and not flags[layer]):
        return (sequence_length + 1) / 2
    window = min(arguments.window_size[0] + 1, sequence_length)
    # The first `window` positions see 1, 2, …, window tokens, all others see `window`.
    return (window * (window + 1) / 2 + (sequence_length - window) * window) / sequence_length
