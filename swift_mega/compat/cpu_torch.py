"""Redirections of torch for a machine without CUDA: what megatron asks of `torch.cuda`, done on the CPU.

megatron-core writes `device="cuda"`, takes `torch.cuda.current_device()` and opens streams wherever it
pleases. On a CPU the current device is the CPU, streams and events are inert (everything has happened
when a call returns), and there is one random generator instead of two.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from swift_mega.compat.redirection import Redirection, replace

CPU = torch.device("cpu")


class Inert:
    """Stands for a CUDA stream or event: every method can be called, does nothing and returns None."""

    device = CPU
    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> "Inert":
        return self

    def __exit__(self, *exception: object) -> None: ...

    def record_event(self, event: "Inert | None" = None) -> "Inert":
        return event or Event()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Inert") -> float:
        return 0.0

    def _nothing(self, *args: Any, **kwargs: Any) -> None: ...

    wait_stream = wait_event = synchronize = record = wait = _nothing


class Stream(Inert):
    """In place of `torch.cuda.Stream`."""


class Event(Inert):
    """In place of `torch.cuda.Event`."""


def nothing() -> Callable[..., None]:
    """A function that does nothing. A new one each time: torch._dynamo refuses one object under two names."""
    return lambda *args, **kwargs: None


def _is_cuda(device: object) -> bool:
    return (isinstance(device, torch.device) and device.type == "cuda") or (
        isinstance(device, str) and device.startswith("cuda")
    )


CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}


class CudaMeansCpu(TorchFunctionMode):
    """Under this mode `cuda` as a device is the CPU, pinned memory is memory, and `Tensor.type()` says `torch.cuda.…`.

    The last is what megatron's optimizers compare with literal names before they accept a parameter.
    Costs 2 µs per torch call (measured on a core with AVX2), against milliseconds for a matrix product.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ON_TENSOR:
            return _ON_TENSOR[func](func, args, kwargs)
        if _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": CPU}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)


def _same_tensor(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    tensor: torch.Tensor = args[0]
    return tensor


def _to(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
    args = tuple(CPU if _is_cuda(value) else value for value in args)
    kwargs = {name: CPU if _is_cuda(value) else value for name, value in kwargs.items()}
    moved: torch.Tensor = func(*args, **kwargs)
    return moved


def _type(func: Any, args: Any, kwargs: Any) -> Any:
    asked_for_name = len(args) == 1 and not kwargs
    return CUDA_TYPE_NAMES.get(args[0].dtype) or func(*args) if asked_for_name else func(*args, **kwargs)


_ON_TENSOR: dict[Any, Callable[[Any, Any, Any], Any]] = {
    torch.Tensor.cuda: _same_tensor,
    torch.Tensor.pin_memory: _same_tensor,
    torch.Tensor.to: _to,
    torch.Tensor.type: _type,
}

_mode = CudaMeansCpu()


def _redirect_device() -> None:
    replace("torch.cuda.current_device", lambda: CPU)
    replace("torch.cuda.set_device", nothing())
    replace("torch.cuda.synchronize", nothing())


def _device_fits() -> bool:
    torch.cuda.set_device(0)
    torch.cuda.synchronize()
    return torch.empty(1, device=torch.cuda.current_device()).device == CPU


def _redirect_streams() -> None:
    stream = Stream()
    replace("torch.cuda.Stream", Stream)
    replace("torch.cuda.Event", Event)
    replace("torch.cuda.stream", lambda stream: Stream())
    replace("torch.cuda.current_stream", lambda device=None: stream)
    replace("torch.cuda.default_stream", lambda device=None: stream)
    replace("torch.cuda.is_current_stream_capturing", lambda: False)


def _streams_fit() -> bool:
    side: Any = torch.cuda.Stream(device=torch.cuda.current_device())  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        event = side.record_event()
    torch.cuda.current_stream().wait_event(event)
    torch.cuda.default_stream().wait_stream(side)
    return bool(event.query()) and not torch.cuda.is_current_stream_capturing()


def _redirect_ranges() -> None:
    replace("torch.cuda.nvtx.range_push", nothing())
    replace("torch.cuda.nvtx.range_pop", nothing())


def _ranges_fit() -> bool:
    torch.cuda.nvtx.range_push("probe")  # type: ignore[no-untyped-call]
    torch.cuda.nvtx.range_pop()  # type: ignore[no-untyped-call]
    return True


TENSOR_TYPES = ("FloatTensor", "HalfTensor", "BFloat16Tensor", "IntTensor", "LongTensor", "DoubleTensor")


def _redirect_types() -> None:
    for name in TENSOR_TYPES:
        replace(f"torch.cuda.{name}", getattr(torch, name))


def _types_fit() -> bool:
    types: Any = torch.cuda
    made = types.FloatTensor([1.0])
    return isinstance(torch.ones(1), types.FloatTensor) and bool(made.dtype == torch.float32)


def _redirect_device_argument() -> None:
    # Left in force until the process ends; a mode belongs to its thread, and so does training.
    _mode.__enter__()  # type: ignore[no-untyped-call]


def _device_argument_fits() -> bool:
    made = torch.zeros(2, device="cuda", pin_memory=True)
    moved = [made.cuda(), made.to("cuda"), made.to(device=torch.device("cuda", 0)), torch.nn.Linear(1, 1).cuda().weight]
    names = [made.type(), made.bfloat16().type()]
    on_cpu = all(tensor.device == CPU for tensor in [made, *moved])
    return on_cpu and names == ["torch.cuda.FloatTensor", "torch.cuda.BFloat16Tensor"]


def _redirect_generator() -> None:
    generator = torch.default_generator
    replace("torch.cuda.get_rng_state", lambda device="cuda": generator.get_state())
    replace("torch.cuda.set_rng_state", lambda state, device="cuda": generator.set_state(state))
    replace("torch.cuda.manual_seed", lambda seed: generator.manual_seed(int(seed)))


def _generator_fits() -> bool:
    before = torch.get_rng_state()
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    first = torch.rand(3, device="cuda")
    torch.cuda.set_rng_state(state)
    again = torch.rand(3, device="cuda")
    torch.set_rng_state(before)
    return torch.equal(first, again)


REDIRECTIONS = (
    Redirection(
        name="current device",
        library="torch",
        why="megatron allocates on torch.cuda.current_device(), which raises without CUDA",
        names=("torch.cuda.current_device", "torch.cuda.set_device", "torch.cuda.synchronize"),
        apply=_redirect_device,
        probe=_device_fits,
    ),
    Redirection(
        name="streams and events",
        library="torch",
        why="gradient reduction and checkpointing open CUDA streams, which cannot be made without CUDA",
        names=tuple(
            f"torch.cuda.{name}"
            for name in ("Stream", "Event", "stream", "current_stream", "default_stream", "is_current_stream_capturing")
        ),
        apply=_redirect_streams,
        probe=_streams_fit,
    ),
    Redirection(
        name="profiler ranges",
        library="torch",
        why="megatron marks ranges for NVIDIA's profiler, which a build without CUDA does not have",
        names=("torch.cuda.nvtx.range_push", "torch.cuda.nvtx.range_pop"),
        apply=_redirect_ranges,
        probe=_ranges_fit,
    ),
    Redirection(
        name="tensor types",
        library="torch",
        why="Float16Module casts what is an instance of torch.cuda.FloatTensor and friends, and CPU tensors are none",
        names=tuple(f"torch.cuda.{name}" for name in TENSOR_TYPES),
        apply=_redirect_types,
        probe=_types_fit,
    ),
    Redirection(
        name="cuda as a device argument",
        library="torch",
        why='megatron writes device="cuda" and .cuda(), and its optimizers compare Tensor.type() with torch.cuda names',
        names=("torch.Tensor.cuda", "torch.Tensor.to", "torch.Tensor.type", "torch.Tensor.pin_memory"),
        apply=_redirect_device_argument,
        probe=_device_argument_fits,
    ),
    Redirection(
        name="random generator",
        library="torch",
        why="megatron keeps the states of the CUDA generator, and without CUDA there is only the CPU's",
        names=("torch.cuda.get_rng_state", "torch.cuda.set_rng_state", "torch.cuda.manual_seed"),
        apply=_redirect_generator,
        probe=_generator_fits,
    ),
)
