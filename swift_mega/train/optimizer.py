"""AdamW with megatron-core's distributed optimizer, and megatron-core's learning-rate schedule."""

import math

from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import layers
from megatron.core.transformer import MegatronModule, TransformerConfig

from swift_mega.compat.buckets import count_padding
from swift_mega.parallel.config import ParallelConfig
from swift_mega.train.config import OptimizerConfig
from swift_mega.train.schedule import wsd_decay_steps


def wrap_data_parallel(chunks: list[MegatronModule], parallel: ParallelConfig) -> list[DistributedDataParallel]:
    """The model's chunks with contiguous gradient buffers, reduced in fp32 over the data-parallel ranks."""
    config: TransformerConfig = chunks[0].config
    # Gradients are divided by the tokens of the global batch, whatever the accumulation and DP size.
    config.calculate_per_token_loss = True
    # Sums what ranks hold twice: norms under sequence parallelism, tied embeddings of first and last stage.
    config.finalize_model_grads_func = finalize_model_grads
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=True,
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        average_in_collective=False,
    )
    # Only the first chunk overlaps: the others' gradients are complete when the pipeline has drained.
    wrapped = [
        DistributedDataParallel(config, ddp_config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    count_padding(wrapped)
    accumulate_in_place(wrapped)
    if parallel.overlap_grad_reduce:
        # Only the last micro-batch may send; one function for one chunk, a list for several.
        no_sync = [chunk.no_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
    return wrapped


def accumulate_in_place(chunks: list[DistributedDataParallel]) -> None:
    """Let linear layers add to the gradient buffers themselves, where there is a kernel for it.

    Not by the model's config: a model that is not wrapped has no buffers, and its backward pass would fail.
    """
    for module in (module for chunk in chunks for module in chunk.modules()):
        if isinstance(module, layers.ColumnParallelLinear | layers.RowParallelLinear):
            module.gradient_accumulation_fusion = layers._grad_accum_fusion_available


def build_optimizer(
    chunks: list[DistributedDataParallel], optimizer: OptimizerConfig, parallel: ParallelConfig
) -> MegatronOptimizer:
    """Distributed AdamW; the master weights are fp32 whatever the model's precision.

    Weight decay leaves out biases and one-dimensional parameters (megatron-core's default groups).
    """
    model_config: TransformerConfig = chunks[0].config
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=optimizer.lr,
            min_lr=optimizer.min_lr,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.adam_beta1,
            adam_beta2=optimizer.adam_beta2,
            adam_eps=optimizer.adam_eps,
            # Without clipping megatron-core leaves out the norm, by which a NaN is found: no norm is above infinity.
            clip_grad=optimizer.clip_grad or math.inf,
            bf16=model_config.bf16,
            params_dtype=model_config.params_dtype,
            use_distributed_optimizer=True,
            overlap_param_gather=parallel.overlap_param_gather,
        ),
        chunks,
    )


def build_scheduler(
    megatron_optimizer: MegatronOptimizer, config: OptimizerConfig, total_steps: int
) -> OptimizerParamScheduler:
    """The schedule in optimizer steps, after `check_schedule`. This start's options win over a checkpoint's."""
    return OptimizerParamScheduler(
        megatron_optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.lr_warmup_steps,
        lr_decay_steps=config.lr_decay_steps or total_steps,
        lr_decay_style=config.lr_decay_style,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=total_steps,
        wd_incr_style="constant",
        wsd_decay_steps=wsd_decay_steps(config, total_steps),
        lr_wsd_decay_style=config.lr_wsd_decay_style,
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
