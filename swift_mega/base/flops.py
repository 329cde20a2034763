"""How many floating point operations training takes, and how many a device can do.

Convention of every TFLOP/s and MFU we print:
- *model* FLOPs: what the mathematics needs. Recomputed activations and padded vocabulary do not count.
- a multiplication and an addition are two operations; only matrix products count (norms, RoPE, softmax
  and the embedding's look-up are below one percent together);
- attention is counted causal: position i (from 0) attends to i + 1 tokens, or to its window. A count
  over the full square, as in PaLM's paper, gives larger numbers for the same speed;
- the product with the vocabulary (logits) counts; backward is twice forward.
MFU divides by the dense bf16 peak in the maker's data sheet, without sparsity.
"""

import re
from typing import Protocol


class Arguments(Protocol):
    """What is read of a model here, under Megatron's argument names."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def ffn_hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_query_groups(self) -> int: ...
    @property
    def kv_channels(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def gated_linear_unit(self) -> bool: ...
    @property
    def window_size(self) -> tuple[int, int] | None: ...
    @property
    def window_attn_skip_freq(self) -> list[int] | None: ...


def flops_per_token(arguments: Arguments, sequence_length: int) -> float:
    """FLOPs of forward and backward per token of a sequence of that many tokens, whole model, mean over positions."""
    heads, groups, size = arguments.num_attention_heads, arguments.num_query_groups, arguments.kv_channels
    attention_weights = arguments.hidden_size * size * (2 * heads + 2 * groups)  # q and output, k and v
    mlp_matrices = 3 if arguments.gated_linear_unit else 2
    mlp_weights = mlp_matrices * arguments.hidden_size * arguments.ffn_hidden_size
    weights = arguments.num_layers * (attention_weights + mlp_weights) + arguments.hidden_size * arguments.vocab_size
    scores = sum(_attended(layer, arguments, sequence_length) for layer in range(arguments.num_layers)) * heads * size
    forward = 2 * weights + 2 * 2 * scores  # of the scores: q·k, and the weighted sum of v
    return 3.0 * forward


def _attended(layer: int, arguments: Arguments, sequence_length: int) -> float:
    """Tokens a position attends to in `layer`, itself included, mean over the positions."""
    flags = arguments.window_attn_skip_freq
    if arguments.window_size is None or (flags is not None and not flags[layer]):
        return (sequence_length + 1) / 2
    window = min(arguments.window_size[0] + 1, sequence_length)
    # The first `window` positions see 1, 2, …, window tokens, all others see `window`.
    return (window * (window + 1) / 2 + (sequence_length - window) * window) / sequence_length


PEAK_BF16_TFLOPS = {
    r"NVIDIA A100.*": 312.0,
    r"NVIDIA A800.*": 312.0,
    r"NVIDIA A40": 149.7,
    r"NVIDIA A30": 165.0,
    r"NVIDIA A10": 125.0,
    r"NVIDIA RTX A6000": 154.8,
    r"NVIDIA RTX 6000 Ada Generation": 364.2,
    r"NVIDIA L4": 121.0,
    r"NVIDIA L40": 181.05,
    r"NVIDIA L40S": 362.05,
    r"NVIDIA H20": 148.0,
    r"NVIDIA H100 PCIe": 756.5,
    r"NVIDIA H100 NVL": 835.5,
    r"NVIDIA H100 (80GB|64GB|96GB) HBM\w+": 989.4,
    r"NVIDIA H800": 989.4,
    r"NVIDIA H200": 989.4,
    r"NVIDIA H200 NVL": 835.5,
    r"NVIDIA GH200.*": 989.4,
    r"NVIDIA B200": 2250.0,
    r"NVIDIA GB200": 2500.0,
    r"NVIDIA GeForce RTX 3090": 71.2,
    r"NVIDIA GeForce RTX 4090": 165.2,
    r"NVIDIA GeForce RTX 5090": 209.5,
    r"AMD Instinct MI300X.*": 1307.4,
}
"""Dense bf16 with fp32 accumulation, from the makers' data sheets, by the whole name that torch reports."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """FLOP/s the device can do at most, or None where that is not known: there is no MFU then, never a guess.

    Known for `torch.bfloat16` only: in fp32 the peak depends on whether TF32 is allowed. A CPU, a slice of a GPU
    (MIG), a laptop's variant are not known.
    """
    if dtype != "torch.bfloat16" or " MIG " in device_name:
        return None
    known = (peak for name, peak in PEAK_BF16_TFLOPS.items() if re.fullmatch(name, device_name))
    tflops = next(known, None)
    return None if tflops is None else tflops * 1e12
