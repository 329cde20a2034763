"""Show what this installation and this machine can do, what is missing and what that costs.

Exit code 0 when training and conversion can run here, 1 when something has to be mended first.
"""

import argparse
import platform
from importlib.metadata import version
from pathlib import Path

SHARED_MEMORY_NEEDED = 64 * 2**20
"""Docker's default; data workers die of SIGBUS when /dev/shm is full."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none: it looks."""


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if one of them stops us."""
    from swift_mega.compat import versions

    print(f"swift-mega {version('swift-mega')} · Python {platform.python_version()} · {platform.platform()}")
    required, optional = versions.required(), versions.optional()
    width = max(len(package.name) for package in (*required, *optional))

    print("\nRequired packages")
    for package in required:
        state = package.problem or f"{package.version:<14} {package.wanted}"
        print(f"  {_mark(package.problem)} {package.name:<{width}}  {state}")
    problems = [f"{package.name} {package.problem}" for package in required if package.problem]

    print("\nOptional packages")
    for package in optional:
        state = package.problem or package.version or f"not installed – {package.loss}"
        print(f"  {_mark(package.problem, here=package.version is not None)} {package.name:<{width}}  {state}")
    problems += [f"{package.name} {package.problem}" for package in optional if package.problem]

    if not any(package.name == "torch" and package.problem for package in required):
        problems += _machine()
    print()
    for problem in problems:
        print(f"To mend: {problem}")
    if not problems:
        print("Ready.")
    return 1 if problems else 0


def _machine() -> list[str]:
    """Print devices, memory and communication; the problems among them."""
    from swift_mega.base.flops import peak_flops
    from swift_mega.compat.machine import survey
    from swift_mega.compat.optional import apex, transformer_engine

    machine = survey(Path.cwd())
    problems = []
    print("\nMachine")
    bf16 = "bf16 instructions" if machine.has_cpu_bf16 else "no bf16 instructions: fp32 is the fast type on this CPU"
    print(f"  CPU                {machine.cores} cores, {machine.vector}; {bf16}")
    print(f"  memory             {_gb(machine.memory_free)} free of {_gb(machine.memory)}")
    print(f"  disk               {_gb(machine.disk_free)} free here")
    for number, gpu in enumerate(machine.gpus):
        peak = peak_flops(gpu.name, "torch.bfloat16")
        mfu = f"MFU against {peak / 1e12:.0f} TFLOP/s" if peak else "peak not known: no MFU"
        precision = "" if gpu.has_bf16 else "; no bf16"
        print(f"  GPU {number:<14} {gpu.name}, {_gb(gpu.memory_bytes)}, compute {gpu.capability}{precision}; {mfu}")
    if not machine.gpus:
        build = (
            f"torch is built for CUDA {machine.cuda}, but sees no device" if machine.cuda else "torch is a CPU build"
        )
        print(f"  GPU                none ({build}): everything runs on the CPU over gloo, slowly")
    for library, why_not in (("TransformerEngine", transformer_engine()), ("apex", apex())):
        if why_not != "not installed":
            print(f"  {library:<17}  {'works' if why_not is None else f'installed, not used: {why_not}'}")
    print(f"  communication      {', '.join(machine.backends)}")
    if machine.gpus and "nccl" not in machine.backends:
        problems.append("this torch has no NCCL, over which GPUs communicate: install its CUDA build")
    if machine.shared_memory < SHARED_MEMORY_NEEDED:
        problems.append(f"/dev/shm holds {machine.shared_memory >> 20} MiB: start the container with --shm-size=1g")
    return problems


def _mark(problem: str, here: bool = True) -> str:
    return "✗" if problem else "✓" if here else "–"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
