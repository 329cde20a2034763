"""The machine: processors, memory, and what torch can reach of both."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory_bytes: int
    capability: str
    """Compute capability, e.g. 9.0."""
    has_bf16: bool


@dataclass(frozen=True)
class Machine:
    """What a run has to work with. Memory and disk in bytes."""

    cores: int
    vector: str
    """The widest vector instructions of the CPU, or its architecture."""
    has_cpu_bf16: bool
    memory: int
    memory_free: int
    shared_memory: int
    """/dev/shm, through which data workers hand over batches."""
    disk_free: int
    gpus: list[Gpu]
    cuda: str | None
    """The CUDA version torch was built for; None: a CPU build."""
    backends: list[str]
    """Communication libraries torch was built with."""


def survey(folder: Path) -> Machine:
    """What is here, with the free disk space at `folder`."""
    flags = _cpu_flags()
    memory, memory_free = _memory()
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        vector=next((name for name in ("avx512f", "avx2") if name in flags), os.uname().machine),
        has_cpu_bf16=bool(flags & {"amx_bf16", "avx512_bf16", "bf16"}),
        memory=memory,
        memory_free=memory_free,
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        disk_free=shutil.disk_usage(folder).free,
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())],
        cuda=torch.version.cuda,
        backends=[name for name in ("gloo", "nccl") if dist.is_backend_available(name)],
    )


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    return Gpu(properties.name, properties.total_memory, capability, has_bf16=properties.major >= 8)


def _cpu_flags() -> set[str]:
    """Instruction sets of the first core, as Linux lists them (`flags` on x86, `Features` on Arm)."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _memory() -> tuple[int, int]:
    """Total and free memory, of this container where one limits it."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text().strip() != "max":
        total = min(total, int(limit.read_text()))
        free = min(free, total - int(used.read_text()))
    return total, free
