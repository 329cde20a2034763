"""Every redirection works as megatron uses it, and says so loudly when the library underneath has changed."""

import importlib
from importlib.metadata import version
from typing import Any

import pytest
import torch

from swift_mega.compat import cpu_torch
from swift_mega.compat.installation import install_redirections
from swift_mega.compat.redirection import CompatError, Redirection, replace

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the redirections of a machine without CUDA")

DISPATCHER = "megatron.core.transformer.moe.token_dispatcher"
LINEAR = "megatron.core.tensor_parallel.layers"

INSTALLED = {redirection.name: redirection for redirection in install_redirections()}
CHANGED = {
    "TransformerEngine and apex where they do not work": "swift_mega.compat.optional.transformer_engine",
    "kernels of the paged stash": "importlib.import_module",
    "current device": "torch.cuda.current_device",
    "streams and events": "torch.cuda.Stream",
    "profiler ranges": "torch.cuda.nvtx.range_push",
    "tensor types": "torch.cuda.FloatTensor",
    "cuda as a device argument": "swift_mega.compat.cpu_torch._is_cuda",
    "random generator": "torch.cuda.get_rng_state",
    "random states of model parallel ranks": "megatron.core.tensor_parallel.random._get_cuda_rng_state",
    "compiled fusions": "megatron.core.fusions.fused_bias_swiglu.swiglu",
    "token splits of the all-to-all dispatcher": f"{DISPATCHER}.maybe_move_tensor_to_cpu",
    "Adam": "megatron.core.optimizer._get_megatron_optimizer_based_on_param_groups",
    "collectives of one rank": "megatron.core.distributed.param_and_grad_buffer.shard_buffer",
    "accumulation of weight gradients": f"{LINEAR}.linear_with_grad_accumulation_and_async_allreduce",
    "scaling of clipped gradients": "megatron.core.optimizer.clip_grads.clip_grad_by_total_norm_fp32",
    "results of checkpoint writers": "megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue",
    "processes of checkpoint writers": "swift_mega.compat.saving._Opened",
    "TransformerEngine in latent attention": "torch.nn.Linear",
    "kernels of gated delta nets": "megatron.core.ssm.gated_delta_net.chunk_gated_delta_rule",
    "product of the mixture-of-experts router": "megatron.core.transformer.moe.moe_utils.router_gating_linear",
}
"""Redirection → what a newer library might have changed under it."""


@pytest.mark.parametrize("name", INSTALLED)
def test_probe_passes(name: str) -> None:
    INSTALLED[name].check()


def test_every_redirection_has_its_failure_tested() -> None:
    assert set(INSTALLED) <= set(CHANGED)


@pytest.mark.parametrize("name", INSTALLED)
def test_probe_fails_loudly_when_the_library_changed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    redirection = INSTALLED[name]

    def changed(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not what it was")

    owner, _, attribute = CHANGED[name].rpartition(".")
    monkeypatch.setattr(importlib.import_module(owner), attribute, changed)
    with pytest.raises(CompatError) as caught:
        redirection.check()
    assert version(redirection.library) in str(caught.value)
    assert name in str(caught.value)


def test_a_name_that_moved_away_is_an_error_and_not_a_silent_assignment() -> None:
    gone = Redirection("gone", "torch", "of this test", ("torch.cuda.no_such_name",), lambda: None, lambda: True)
    with pytest.raises(CompatError, match=r"`torch.cuda.no_such_name` does not exist"):
        gone.install()


def test_cuda_as_a_device_is_the_cpu() -> None:
    made = [
        torch.empty(1, device="cuda"),
        torch.ones(1, device=torch.device("cuda:0")),
        torch.tensor([1], device="cuda"),
    ]
    moved = [made[0].cuda(), made[0].to("cuda"), made[0].to("cuda", torch.float64), torch.nn.Linear(1, 1).cuda().weight]
    assert {tensor.device.type for tensor in made + moved} == {"cpu"}
    assert moved[2].dtype == torch.float64


def test_other_devices_stay_what_they_are() -> None:
    assert torch.empty(1, device="meta").device.type == "meta"
    assert torch.empty(1).to("meta").device.type == "meta"


def test_names_of_types_are_cudas_only_where_megatron_compares_them() -> None:
    assert torch.ones(1).type() == "torch.cuda.FloatTensor"
    assert torch.ones(1, dtype=torch.int64).type() == "torch.LongTensor"
    assert torch.ones(1).type(torch.float64).dtype == torch.float64


def test_forked_states_differ_between_names_and_continue(caplog: pytest.LogCaptureFixture) -> None:
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    tracker = random.CudaRNGStatesTracker()
    tracker.add("one", 1)
    tracker.add("two", 2)
    draws = []
    for name in ("one", "two", "one"):
        with tracker.fork(name):
            draws.append(torch.rand(4))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert "CPU RNG state changed" not in caplog.text


def test_streams_are_inert() -> None:
    cuda: Any = torch.cuda
    stream = cuda.Stream()
    with cuda.stream(stream):
        stream.wait_stream(torch.cuda.current_stream())
    event = cuda.Event(enable_timing=True)
    event.record()
    event.synchronize()
    assert isinstance(stream, cpu_torch.Stream)
    assert event.elapsed_time(event) == 0.0


def test_replace_reaches_nested_names() -> None:
    nvtx: Any = torch.cuda.nvtx
    original = nvtx.range_pop
    try:
        replace("torch.cuda.nvtx.range_pop", "replaced")
        assert nvtx.range_pop == "replaced"
    finally:
        replace("torch.cuda.nvtx.range_pop", original)
