"""What only a GPU can show: parity, speed and resume on one NVIDIA GPU, as a table.

    python tests/gpu/run.py                          # one GPU with 50 GB or more; 20 GB of disk in $TMPDIR
    python tests/gpu/run.py --device cpu --tiny      # the same code on a CPU in seconds: is the script itself right?

Every check runs with megatron-core's own layers and with TransformerEngine's where that is there. What cannot run
says why. Exit code 1 if a check failed, 2 if none could run.
"""

import argparse
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKS = ("parity_fp32", "parity_bf16", "training", "resume")
IMPLEMENTATIONS = ("local", "transformer_engine")
Check = Callable[[Path, str, bool], str]
"""(empty folder, implementation, tiny) → the figures; an AssertionError is a failure, a UserError a reason."""


@dataclass
class Row:
    """A line of the table."""

    check: str
    implementation: str
    outcome: str
    figures: str

    def __str__(self) -> str:
        return f"{self.check:<12} {self.implementation:<19} {self.outcome:<8} {self.figures}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights, a few short steps")
    parser.add_argument("--check", choices=CHECKS, nargs="+", default=CHECKS)
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # cuBLAS is deterministic with this only; it has to be said before CUDA starts and changes no speed.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rows = [
        attempt(check, implementation, options.device, options.tiny)
        for check in options.check
        for implementation in IMPLEMENTATIONS
    ]
    print(environment())
    print(*rows, sep="\n")
    outcomes = {row.outcome for row in rows}
    return 1 if "FAILED" in outcomes else 0 if "passed" in outcomes else 2


def attempt(name: str, implementation: str, device: str, tiny: bool) -> Row:
    """One check with one implementation of the layers."""
    reason = why_not(implementation, device)
    if reason is not None:
        return Row(name, implementation, "not run", reason)
    from swift_mega.base.errors import UserError
    from tests.gpu import checks

    check: Check = getattr(checks, name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return Row(name, implementation, "passed", check(Path(folder), implementation, tiny))
    except AssertionError as failure:
        return Row(name, implementation, "FAILED", str(failure).partition("\n")[0])
    except UserError as cannot:
        return Row(name, implementation, "not run", cannot.what)
    except Exception as error:  # noqa: BLE001 - out of memory, a kernel that fails: the other checks still count
        traceback.print_exc()
        return Row(name, implementation, "FAILED", f"{type(error).__name__}: {error}".partition("\n")[0])


def why_not(implementation: str, device: str) -> str | None:
    """Why nothing can run with these layers here, or None."""
    import torch

    from swift_mega import compat
    from swift_mega.compat import optional

    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    missing = optional.transformer_engine() if implementation == "transformer_engine" else None
    if missing is None:
        compat.install()
    return missing and f"TransformerEngine: {missing}"


def environment() -> str:
    """Device, versions, and what MFU means."""
    from importlib.metadata import version

    import torch

    from swift_mega.base.flops import peak_flops
    from swift_mega.compat import optional
    from swift_mega.compat.device import device_name

    names = ("torch", "megatron-core", "transformers")
    te = optional.transformer_engine() or importlib.import_module("transformer_engine").__version__
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    peak = peak_flops(device_name(), str(torch.bfloat16))
    known = f"{peak / 1e12:g} TFLOP/s" if peak else "not known for this device, so there is no MFU"
    return (
        f"{device_name()}; {versions}, CUDA {torch.version.cuda}, TransformerEngine: {te}\n"
        f"MFU: model FLOPs (causal attention, logits counted, backward twice forward) ÷ dense bf16 peak: {known}"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
