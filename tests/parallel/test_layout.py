"""Layouts that do not fit are answered with the arithmetic and the numbers that do."""

import dataclasses
from typing import Any

import pytest

from converters.config_table import MegatronArguments
from swift_mega.base.errors import UserError
from swift_mega.parallel import layout
from swift_mega.parallel.config import ParallelConfig

SMOLLM2 = MegatronArguments(
    num_layers=30,
    hidden_size=576,
    ffn_hidden_size=1536,
    num_attention_heads=9,
    num_query_groups=3,
    kv_channels=64,
    max_position_embeddings=8192,
    vocab_size=49152,
    norm_epsilon=1e-5,
)
LLAMA_8B = dataclasses.replace(
    SMOLLM2, num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, num_query_groups=8
)


def sizes(tp: int = 1, pp: int = 1, vpp: int | None = None, **switches: bool) -> ParallelConfig:
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
        **switches,
    )


@pytest.mark.parametrize(
    ("parallel", "world_size"),
    [
        (sizes(), 1),
        (sizes(3, sequence_parallel=True), 3),
        (sizes(pp=2), 4),
        (sizes(3, 2), 6),
        (sizes(3, 5, 3), 30),
    ],
)
def test_layouts_of_smollm2(parallel: ParallelConfig, world_size: int) -> None:
    layout.check_layout(parallel, SMOLLM2, world_size)


@pytest.mark.parametrize(
    ("parallel", "world_size", "says"),
    [
        (
            sizes(2),
            2,
            "tensor_model_parallel_size 2 does not fit this model: 9 attention heads / 2 leaves 1; "
            "3 key-value heads and 2 ranks do not divide one another.\n  → Sizes that work: 1, 3.",
        ),
        (sizes(9), 9, "ffn size 1536 / 9 leaves 6.\n  → Sizes that work: 1, 3."),
        (sizes(3), 4, "4 processes cannot be split into TP 3 × PP 1 = 3 ranks per model copy.\n  → Start 3 or 6"),
        (sizes(pp=4), 4, "4 does not divide 30 layers: 2 left over.\n  → Sizes that work: 1, 2, 3, 5, 6, 10, 15, 30."),
        (sizes(pp=2, vpp=4), 2, "PP 2 × VPP 4 = 8 runs of layers do not divide 30 layers.\n  → virtual"),
        (sizes(pp=30, vpp=2), 30, "none; leave it out"),
        (sizes(vpp=2), 1, "virtual_pipeline_model_parallel_size 2 with pipeline_model_parallel_size 1 interleaves"),
        (sizes(pp=2, vpp=1), 2, "of at least 2, or leave the latter out"),
        (sizes(sequence_parallel=True), 1, "tensor_model_parallel_size is 1"),
        (sizes(overlap_param_gather=True), 1, "overlap_param_gather needs overlap_grad_reduce"),
        (sizes(0), 1, "tensor_model_parallel_size is 0."),
        (sizes(), 0, "world size is 0."),
    ],
)
def test_what_does_not_fit_smollm2(parallel: ParallelConfig, world_size: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        layout.check_layout(parallel, SMOLLM2, world_size)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "possible"),
    [
        (SMOLLM2, [1, 3]),
        (LLAMA_8B, [1, 2, 4, 8, 16, 32]),
        (dataclasses.replace(LLAMA_8B, num_query_groups=1), [1, 2, 4, 8, 16, 32]),
        (dataclasses.replace(LLAMA_8B, ffn_hidden_size=14340), [1, 2, 4]),
    ],
)
def test_tensor_parallel_sizes(arguments: MegatronArguments, possible: list[int]) -> None:
    """More ranks than key-value heads are fine where one divides the other."""
    assert layout.tensor_parallel_sizes(arguments) == possible


def test_micro_batches_per_step() -> None:
    assert layout.check_batch(sizes(), 1, 2, 8) == 4
    assert layout.check_batch(sizes(tp=2, pp=2), 8, 1, 6) == 3
    assert layout.check_batch(sizes(pp=2, vpp=2), 2, 1, 4) == 4


@pytest.mark.parametrize(
    ("parallel", "world_size", "micro", "total", "says"),
    [
        (sizes(), 4, 2, 12, "12 is no multiple of micro_batch_size 2 × DP 4 = 8.\n  → Nearest that work: 8 or 16."),
        (sizes(), 8, 1, 4, "Nearest that work: 8."),
        (sizes(pp=2, vpp=2), 2, 1, 3, "a multiple of PP 2 micro batches"),
        (sizes(), 1, 0, 4, "micro_batch_size is 0."),
        (sizes(), 1, 1, -1, "global_batch_size is -1."),
    ],
)
def test_batches_that_do_not_divide(
    parallel: ParallelConfig, world_size: int, micro: int, total: int, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        layout.check_batch(parallel, world_size, micro, total)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("parallel", "length", "says"),
    [
        (sizes(), 8193, "sequence_length 8193 is outside the model's positions: max_position_embeddings 8192"),
        (sizes(), 0, "Choose 1 to 8192"),
        (sizes(3, sequence_parallel=True), 256, "256 / 3 leaves 1 tokens over.\n  → Nearest that work: 255 or 258."),
    ],
)
def test_sequence_lengths_that_do_not_fit(parallel: ParallelConfig, length: int, says: str) -> None:
    layout.check_sequence_length(sizes(3), SMOLLM2, 256)
    with pytest.raises(UserError) as caught:
        layout.check_sequence_length(parallel, SMOLLM2, length)
    assert says in str(caught.value)


def test_needs_no_torch() -> None:
    """The launcher asks before anything heavy is imported."""
    import subprocess
    import sys

    code = "import sys, swift_mega.parallel.layout; print('torch' in sys.modules)"
    result: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


EXPERTS = dataclasses.replace(LLAMA_8B, num_moe_experts=8, moe_ffn_hidden_size=1536)
LATENT = dataclasses.replace(
    EXPERTS, q_lora_rank=1536, kv_lora_rank=512, qk_head_dim=128, qk_pos_emb_head_dim=64, v_head_dim=128
)


def with_experts(ep: int, etp: int | None = None, **others: Any) -> ParallelConfig:
    return dataclasses.replace(sizes(**others), expert_model_parallel_size=ep, expert_tensor_parallel_size=etp)


@pytest.mark.parametrize(
    ("parallel", "arguments", "world_size"),
    [
        (with_experts(8), EXPERTS, 8),
        (with_experts(4, pp=2), EXPERTS, 8),
        (with_experts(4, 1, tp=4, sequence_parallel=True), EXPERTS, 4),
        (with_experts(1, tp=8, sequence_parallel=True), LATENT, 8),
    ],
)
def test_layouts_with_experts(parallel: ParallelConfig, arguments: MegatronArguments, world_size: int) -> None:
    layout.check_layout(parallel, arguments, world_size)


@pytest.mark.parametrize(
    ("parallel", "changes", "world_size", "says"),
    [
        (with_experts(2), {"num_moe_experts": None}, 2, "the model has no experts"),
        (with_experts(3), {}, 3, "3 does not divide 8 experts: 2 left over.\n  → Sizes that work: 1, 2, 4, 8."),
        (with_experts(4), {}, 2, "2 processes cannot be split into expert_tensor_parallel_size 1 × EP 4 × PP 1 = 4"),
        (with_experts(1, tp=2), {}, 2, "splits so only with sequence_parallel.\n  → Switch sequence_parallel on."),
        (
            with_experts(2, 1, tp=2, sequence_parallel=True),
            {"moe_shared_expert_intermediate_size": 15},
            2,
            "shared expert size 15 / 2 leaves 1",
        ),
        (with_experts(1, 2, tp=2, sequence_parallel=True), {"moe_ffn_hidden_size": 15}, 2, "expert size 15 / "),
        (with_experts(1, 1, tp=2, sequence_parallel=True), {}, 2, "would not add up the gradients of the experts"),
        (with_experts(1, tp=2, sequence_parallel=True), {"add_bias_linear": True}, 2, "the experts have biases"),
        (with_experts(1, tp=2, sequence_parallel=True), {"kv_lora_rank": 15}, 2, "latent key and value / 2 leaves 1"),
        (with_experts(1, tp=2, sequence_parallel=True), {"q_lora_rank": 15}, 2, "rank 15 of the query / 2 leaves 1"),
    ],
)
def test_layouts_that_do_not_fit_experts(
    parallel: ParallelConfig, changes: dict[str, Any], world_size: int, says: str
) -> None:
    with pytest.raises(UserError) as error:
        layout.check_layout(parallel, dataclasses.replace(LATENT, **changes), world_size)
    assert says in str(error.value)
