"""Redirections of megatron-core itself, put in place right after its import.

Two groups: what a machine without CUDA needs, and what any machine without TransformerEngine and apex
needs.
"""

import importlib
import logging
from typing import Any

import torch

from swift_mega.compat.adam import Adam
from swift_mega.compat.redirection import Redirection, replace

RANDOM = "megatron.core.tensor_parallel.random"
MOE_UTILS = "megatron.core.transformer.moe.moe_utils"
LATENT = "megatron.core.transformer.multi_latent_attention"
DELTA_NET = "megatron.core.ssm.gated_delta_net"
DISPATCHER = "megatron.core.transformer.moe.token_dispatcher"
OPTIMIZER = "megatron.core.optimizer"
DISTRIBUTED_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer"


def _get_generator_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_generator_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
    torch.default_generator.set_state(new_state)


def _redirect_tracker() -> None:
    replace(f"{RANDOM}._get_cuda_rng_state", _get_generator_state)
    replace(f"{RANDOM}._set_cuda_rng_state", _set_generator_state)
    # fork() warns when the CPU generator moved inside it; here it is the very generator that is forked.
    logging.getLogger(RANDOM).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def _tracker_fits() -> bool:
    """A forked draw repeats with its seed and leaves the outer generator where it was."""
    random = importlib.import_module(RANDOM)
    outside = torch.get_rng_state()
    tracker = random.CudaRNGStatesTracker()
    tracker.add("probe", 5)
    with tracker.fork("probe"):
        forked = torch.rand(2)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(5))
    return torch.equal(forked, expected) and torch.equal(outside, torch.get_rng_state())


def _redirect_fusions() -> None:
    importlib.import_module("megatron.core.jit").disable_jit_fuser()


def _fusions_fit() -> bool:
    """A fused function of megatron's is the plain Python function, not a compiled one."""
    swiglu = importlib.import_module("megatron.core.fusions.fused_bias_swiglu").swiglu
    compiled = hasattr(swiglu, "_torchdynamo_orig_callable")
    return not compiled and torch.equal(swiglu(torch.zeros(1, 2)), torch.zeros(1, 1))


def _define_router_gemm() -> None:
    if not hasattr(importlib.import_module(MOE_UTILS), "te_general_gemm"):
        replace(f"{MOE_UTILS}.te_general_gemm", None)


def _router_gemm_fits() -> bool:
    """The router's product, which asks for TransformerEngine's, falls back to torch's."""
    moe_utils = importlib.import_module(MOE_UTILS)
    product = moe_utils.router_gating_linear(torch.ones(1, 2), torch.ones(3, 2), None, torch.float32)
    return torch.equal(product, torch.full((1, 3), 2.0))


def _redirect_latent_attention() -> None:
    replace(f"{LATENT}.HAVE_TE", False)


def _latent_attention_fits() -> bool:
    """What it asks about a layer, whether that is TransformerEngine's, can be asked."""
    latent, linear = importlib.import_module(LATENT), torch.nn.Linear(1, 1)
    return not (latent.HAVE_TE and isinstance(linear, latent.TELinear))


def _to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _redirect_splits() -> None:
    replace(f"{MOE_UTILS}.maybe_move_tensor_to_cpu", _to_cpu)
    replace(f"{DISPATCHER}.maybe_move_tensor_to_cpu", _to_cpu)


def _splits_fit() -> bool:
    dispatcher = importlib.import_module(DISPATCHER)
    splits = dispatcher.maybe_move_tensor_to_cpu(torch.tensor([1, 2]), as_numpy=True, record_stream=True)
    return bool(splits.tolist() == [1, 2]) and not torch.is_tensor(splits)


WITHOUT_CUDA = (
    Redirection(
        name="random states of model parallel ranks",
        library="megatron-core",
        why="the tracker reads and writes the CUDA generator, and without CUDA dropout draws from the CPU's",
        names=(f"{RANDOM}._get_cuda_rng_state", f"{RANDOM}._set_cuda_rng_state", f"{RANDOM}.CudaRNGStatesTracker"),
        apply=_redirect_tracker,
        probe=_tracker_fits,
    ),
    Redirection(
        name="compiled fusions",
        library="megatron-core",
        why="its fusions are torch.compile'd, which on a CPU needs a C++ compiler and a minute at the first step",
        names=("megatron.core.jit.jit_fuser", "megatron.core.jit.disable_jit_fuser"),
        apply=_redirect_fusions,
        probe=_fusions_fit,
    ),
    Redirection(
        name="token splits of the all-to-all dispatcher",
        library="megatron-core",
        why="splits are turned into numpy only where they are CUDA tensors, and the all-to-all needs integers",
        names=(f"{MOE_UTILS}.maybe_move_tensor_to_cpu", f"{DISPATCHER}.maybe_move_tensor_to_cpu"),
        apply=_redirect_splits,
        probe=_splits_fit,
    ),
)


def _redirect_adam() -> None:
    replace(f"{OPTIMIZER}.Adam", Adam)
    replace(f"{OPTIMIZER}.USING_PYTORCH_OPTIMIZER", False)
    replace(f"{DISTRIBUTED_OPTIMIZER}.Adam", Adam)
    # "apex" to megatron: the step is an int of the parameter group, and a rank may have empty groups.
    replace(f"{DISTRIBUTED_OPTIMIZER}.HAVE_APEX_OR_TE", True)
    replace(f"{DISTRIBUTED_OPTIMIZER}.USING_APEX_OPTIMIZER", True)


def _adam_fits() -> bool:
    """megatron makes our class where it would make apex's, and finds the step where apex keeps it."""
    build = importlib.import_module(OPTIMIZER)._get_megatron_optimizer_based_on_param_groups
    config = importlib.import_module(OPTIMIZER).OptimizerConfig(optimizer="adam", lr=0.1, weight_decay=0.0)
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    asked_for = {"Adam", "USING_PYTORCH_OPTIMIZER", "adam_w_mode"}
    names = {*build.__code__.co_names, *(c for c in build.__code__.co_consts if isinstance(c, str))}
    made = Adam([weight], lr=config.lr, weight_decay=config.weight_decay, adam_w_mode=config.decoupled_weight_decay)
    made.step()
    return asked_for <= names and made.param_groups[0]["step"] == 1 and bool(weight < 1)


WITHOUT_FUSED_ADAM = (
    Redirection(
        name="Adam",
        library="megatron-core",
        why="without TransformerEngine and apex the step count of the distributed optimizer is lost on resharding",
        names=(
            f"{OPTIMIZER}.Adam",
            f"{OPTIMIZER}.USING_PYTORCH_OPTIMIZER",
            f"{DISTRIBUTED_OPTIMIZER}.Adam",
            f"{DISTRIBUTED_OPTIMIZER}.HAVE_APEX_OR_TE",
            f"{DISTRIBUTED_OPTIMIZER}.USING_APEX_OPTIMIZER",
        ),
        apply=_redirect_adam,
        probe=_adam_fits,
    ),
)

WITHOUT_TRANSFORMER_ENGINE = (
    Redirection(
        name="product of the mixture-of-experts router",
        library="megatron-core",
        why="0.16 asks for te_general_gemm, a name that it defines only with TransformerEngine",
        names=(f"{MOE_UTILS}.router_gating_linear",),
        apply=_define_router_gemm,
        probe=_router_gemm_fits,
    ),
    Redirection(
        name="TransformerEngine in latent attention",
        library="megatron-core",
        why="it takes placeholders for TransformerEngine's classes where that is not installed",
        names=(f"{LATENT}.HAVE_TE",),
        apply=_redirect_latent_attention,
        probe=_latent_attention_fits,
    ),
)


def _unit_vectors(x: torch.Tensor) -> torch.Tensor:
    """[..., d] → [..., d] of length one, as flash-linear-attention's `l2norm`."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)


def _redirect_delta_net() -> None:
    replace(f"{DELTA_NET}.HAVE_FLA", True)
    replace(f"{DELTA_NET}.l2norm", _unit_vectors)
    replace(f"{DELTA_NET}.chunk_gated_delta_rule", importlib.import_module(DELTA_NET).torch_chunk_gated_delta_rule)


def _delta_net_fits() -> bool:
    """Of a single token nothing is left but its value, times the product of query and key and one over the root."""
    net = importlib.import_module(DELTA_NET)
    one, value = net.l2norm(torch.ones(1, 1, 1, 4)), torch.full((1, 1, 1, 3), 5.0)
    settings = {"g": torch.zeros(1, 1, 1), "beta": torch.ones(1, 1, 1), "initial_state": None}
    found, _ = net.chunk_gated_delta_rule(
        one, one, value, **settings, output_final_state=False, use_qk_l2norm_in_kernel=False
    )
    return bool(torch.allclose(found, value / 2))


WITHOUT_FLASH_LINEAR_ATTENTION = (
    Redirection(
        name="kernels of gated delta nets",
        library="megatron-core",
        why="it refuses to build one without flash-linear-attention, though it has the same in torch",
        names=(
            f"{DELTA_NET}.HAVE_FLA",
            f"{DELTA_NET}.chunk_gated_delta_rule",
            f"{DELTA_NET}.torch_chunk_gated_delta_rule",
        ),
        apply=_redirect_delta_net,
        probe=_delta_net_fits,
    ),
)
