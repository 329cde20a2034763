"""FLOPs against an independent count (torch's own counter on transformers' model), and the known devices."""

from dataclasses import dataclass

import pytest

from swift_mega.base.flops import flops_per_token, peak_flops


@dataclass
class Shape:
    """A model in Megatron's words."""

    num_layers: int = 2
    hidden_size: int = 48
    ffn_hidden_size: int = 80
    num_attention_heads: int = 6
    num_query_groups: int = 2
    kv_channels: int = 10
    vocab_size: int = 101
    gated_linear_unit: bool = True
    window_size: tuple[int, int] | None = None
    window_attn_skip_freq: list[int] | None = None


def test_equal_to_what_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, length, batch = Shape(), 32, 3
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.ffn_hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_query_groups,
            head_dim=shape.kv_channels,
            attn_implementation="eager",
        )
    )
    tokens = torch.randint(shape.vocab_size, (batch, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()

    # torch multiplies the whole square of scores; we count the causal half of it, diagonal included.
    masked = (length - (length + 1) / 2) * 4 * shape.num_attention_heads * shape.kv_channels * shape.num_layers
    # transformers before 5.23 computes RoPE's angles as a matrix product of positions and frequencies, once a batch.
    angles = 2 * length * shape.kv_channels // 2
    ours = batch * length * (flops_per_token(shape, length) + 3 * masked)
    assert counter.get_total_flops() in (ours, ours + angles)


def test_a_window_counts_what_it_sees() -> None:
    per_pair = 3 * 4 * 6 * 10
    full, windowed = Shape(), Shape(window_size=(2, 0))
    # 5 positions see 1+2+3+4+5 tokens without a window and 1+2+3+3+3 with one of three tokens.
    assert flops_per_token(full, 5) - flops_per_token(windowed, 5) == pytest.approx(2 * per_pair * (15 - 12) / 5)
    half = Shape(window_size=(2, 0), window_attn_skip_freq=[1, 0])
    assert flops_per_token(full, 5) - flops_per_token(half, 5) == pytest.approx(per_pair * (15 - 12) / 5)
    assert flops_per_token(Shape(window_size=(99, 0)), 5) == flops_per_token(full, 5)


def test_a_known_model() -> None:
    """Llama-3.2-1B: 1.236 G parameters in matrices, logits included; 6 of them per token, and attention."""
    llama = Shape(16, 2048, 8192, 32, 8, 64, 128256)
    assert flops_per_token(llama, 1) == pytest.approx(6 * 1.2358e9, rel=1e-3)
    assert flops_per_token(llama, 4096) == pytest.approx(6 * 1.2358e9 + 3 * 16 * 4 * 2048 * 2048.5, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_known_devices(name: str, tflops: float) -> None:
    assert peak_flops(name, "torch.bfloat16") == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    ["cpu", "", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"],
)
def test_no_guess_for_others(name: str) -> None:
    assert peak_flops(name, "torch.bfloat16") is None


def test_no_peak_outside_bf16() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "torch.float32") is None
