"""From Hugging Face config and options to megatron's config."""

import dataclasses
from typing import Any

import pytest
import torch

from converters.config_table import MegatronArguments
from swift_mega.base.errors import UserError
from swift_mega.model import build, spec
from swift_mega.model.config import ModelConfig
from swift_mega.parallel import groups
from swift_mega.parallel.config import ParallelConfig
from swift_mega.train.config import TrainConfig
from tests.support import tiny

ARGUMENTS = MegatronArguments(
    num_layers=4,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    max_position_embeddings=64,
    vocab_size=101,
    norm_epsilon=1e-6,
)
HF_CONFIG = {**tiny.COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 101}
MODEL = ModelConfig(path="unused", precision="fp32")


def config_for(model: ModelConfig = MODEL, train: dict[str, Any] | None = None, **parallel: Any) -> Any:
    return build.transformer_config(ARGUMENTS, model, ParallelConfig(**parallel), TrainConfig(steps=1, **(train or {})))


def test_interleaved_sends_are_overlapped_and_not_batched() -> None:
    """megatron-core's own default gives wrong gradients there, without an error."""
    interleaved = config_for(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
    plain = config_for(pipeline_model_parallel_size=2)
    assert (interleaved.overlap_p2p_comm, interleaved.batch_p2p_comm) == (True, False)
    assert (plain.overlap_p2p_comm, plain.batch_p2p_comm) == (False, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what holds without CUDA's streams")
def test_sent_tensors_are_freed_only_where_the_send_is_over() -> None:
    assert config_for(pipeline_model_parallel_size=2).deallocate_pipeline_outputs
    assert not config_for(
        pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2
    ).deallocate_pipeline_outputs


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("auto", torch.bfloat16 if torch.cuda.is_available() else torch.float32),
    ],
)
def test_precision(precision: Any, dtype: torch.dtype) -> None:
    config = config_for(dataclasses.replace(MODEL, precision=precision))
    assert (config.params_dtype, config.pipeline_dtype, config.bf16) == (dtype, dtype, dtype == torch.bfloat16)


def test_recompute() -> None:
    full = config_for(train={"recompute_granularity": "full", "recompute_num_layers": 2})
    selective = config_for(train={"recompute_granularity": "selective"})
    assert (full.recompute_method, full.recompute_num_layers) == ("uniform", 2)
    assert selective.recompute_modules == ["core_attn"]
    assert config_for().recompute_granularity is None
    with pytest.raises(UserError, match="recompute_num_layers is 0"):
        config_for(train={"recompute_granularity": "full", "recompute_num_layers": 0})


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without CUDA")
def test_transformer_engine_asked_for_where_it_cannot_run() -> None:
    assert spec.implementation("auto", ARGUMENTS) == "local"
    with pytest.raises(UserError, match="cannot be used here: not installed"):
        spec.implementation("transformer_engine", ARGUMENTS)


@pytest.mark.parametrize(
    ("parallel", "length", "says"),
    [
        ({}, 65, "sequence_length 65 is outside the model's positions"),
        ({"tensor_model_parallel_size": 3}, 16, "4 attention heads / 3 leaves 1"),
        ({"pipeline_model_parallel_size": 2}, 16, "1 process cannot be split"),
    ],
)
def test_what_cannot_be_built_is_refused_before_building(parallel: dict[str, Any], length: int, says: str) -> None:
    groups.initialize(ParallelConfig(), seed=1)
    try:
        with pytest.raises(UserError, match=says):
            build.build_model(HF_CONFIG, MODEL, ParallelConfig(**parallel), TrainConfig(steps=1), length)
    finally:
        groups.shutdown()


def test_an_unknown_architecture_lists_the_known() -> None:
    groups.initialize(ParallelConfig(), seed=1)
    try:
        with pytest.raises(UserError, match=r"LlamaForCausalLM, .*MistralForCausalLM, .*Qwen2ForCausalLM"):
            build.build_model(
                {**HF_CONFIG, "architectures": ["NoSuchModel"]}, MODEL, ParallelConfig(), TrainConfig(steps=1), 16
            )
    finally:
        groups.shutdown()
