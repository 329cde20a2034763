"""Redirections of megatron-core that change no number that matters, only how long it takes.

On a CPU fresh memory costs more than arithmetic: each 4 KiB page is faulted in and zeroed by the kernel. These
three keep megatron from copying the gradients of the whole model through it at every step.
"""

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from swift_mega.compat.redirection import Redirection, replace

BUFFERS = "megatron.core.distributed.param_and_grad_buffer"
LINEAR = "megatron.core.tensor_parallel.layers"
CLIP = "megatron.core.optimizer.clip_grads"


def _over_ranks(collective: Any) -> Any:
    """`collective(output, input, …)`, left out where one rank holds everything in place already."""

    def collect(output: Tensor, input: Tensor, *, group: ProcessGroup, **options: Any) -> Any:
        in_place = output.data_ptr() == input.data_ptr() and output.numel() == input.numel()
        return None if in_place and group.size() == 1 else collective(output, input, group=group, **options)

    return collect


def _redirect_collectives() -> None:
    for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
        replace(f"{BUFFERS}.{name}", _over_ranks(getattr(importlib.import_module(BUFFERS), name)))


def _collectives_fit() -> bool:
    """A shard of a group of one is the buffer itself, and nobody is asked for it."""

    class One:
        def size(self) -> int:
            return 1

    buffers = importlib.import_module(BUFFERS)
    whole = torch.ones(2)
    (shard,) = buffers.shard_buffer(whole, 1)
    asked = buffers.dist_reduce_scatter_func.__name__, buffers.dist_all_gather_func.__name__
    buffers.dist_reduce_scatter_func(shard, whole, op=None, group=One(), async_op=False)
    buffers.dist_all_gather_func(whole, shard, group=One(), async_op=False)
    return asked == ("collect", "collect") and torch.equal(whole, torch.ones(2))


class WeightGradient:
    """In place of apex's `fused_weight_gradient_mlp_cuda`: the product is added where gradients are kept."""

    @staticmethod
    def wgrad_gemm_accum_fp32(input: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
        """main_grad [out, in] += grad_outputᵀ [out, tokens] · input [tokens, in], the sum in fp32."""
        if input.dtype == main_grad.dtype:
            main_grad.addmm_(grad_output.t(), input)
        else:
            main_grad.add_(grad_output.t().matmul(input))

    wgrad_gemm_accum_fp16 = wgrad_gemm_accum_fp32


def _define_weight_gradient() -> None:
    replace(f"{LINEAR}.fused_weight_gradient_mlp_cuda", WeightGradient)
    replace(f"{LINEAR}._grad_accum_fusion_available", True)


@torch.enable_grad()  # whoever installs this may be under `no_grad`
def _weight_gradient_fits() -> bool:
    """A linear layer's backward pass adds to `main_grad` and hands on the input's gradient."""
    layers = importlib.import_module(LINEAR)
    x, weight = torch.ones(3, 1, 2, requires_grad=True), torch.nn.Parameter(torch.eye(2))
    weight.main_grad = torch.ones(2, 2)  # type: ignore[attr-defined]
    layers.linear_with_grad_accumulation_and_async_allreduce(
        x, weight, None, gradient_accumulation_fusion=True, allreduce_dgrad=False, sequence_parallel=False
    ).sum().backward()
    added: Tensor = weight.main_grad  # type: ignore[attr-defined]
    handed_on = x.grad is not None and torch.equal(x.grad, torch.ones_like(x))
    return weight.grad is None and handed_on and torch.equal(added, torch.full((2, 2), 4.0))


def _scale_in_place(chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], scale: float) -> None:
    sources, targets = tensor_lists
    for source, target in zip(sources, targets, strict=True):
        torch.mul(source, scale, out=target)


def _redirect_scaling() -> None:
    replace(f"{CLIP}.multi_tensor_scale_impl", _scale_in_place)


def _scaling_fits() -> bool:
    """A gradient with norm 5, clipped to 1."""
    clip = importlib.import_module(CLIP)
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    kept = weight.grad.data_ptr()
    clip.clip_grad_by_total_norm_fp32([weight], 1.0, 5.0)
    return kept == weight.grad.data_ptr() and torch.allclose(weight.grad, torch.tensor([0.6, 0.8]))


WITHOUT_CUDA = (
    Redirection(
        name="collectives of one rank",
        library="megatron-core",
        why="gloo copies twice where nothing has to move: all gradients and all parameters at every step",
        names=(f"{BUFFERS}.dist_reduce_scatter_func", f"{BUFFERS}.dist_all_gather_func", f"{BUFFERS}.shard_buffer"),
        apply=_redirect_collectives,
        probe=_collectives_fit,
    ),
    Redirection(
        name="accumulation of weight gradients",
        library="megatron-core",
        why="without apex every weight's gradient is written to fresh memory, and then added in a second pass",
        names=(
            f"{LINEAR}._grad_accum_fusion_available",
            f"{LINEAR}.linear_with_grad_accumulation_and_async_allreduce",
        ),
        apply=_define_weight_gradient,
        probe=_weight_gradient_fits,
    ),
)

WITHOUT_FUSED_ADAM = (
    Redirection(
        name="scaling of clipped gradients",
        library="megatron-core",
        why="without TransformerEngine and apex a clipped gradient is multiplied into fresh memory and copied back",
        names=(f"{CLIP}.multi_tensor_scale_impl", f"{CLIP}.clip_grad_by_total_norm_fp32"),
        apply=_redirect_scaling,
        probe=_scaling_fits,
    ),
)
