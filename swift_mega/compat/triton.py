"""megatron-core 0.19 imports triton kernels at its top, which CPU builds of torch come without.

They are the kernels of the paged activation stash of mixture-of-experts layers, which only a GPU runs;
everything else that needs triton asks for it first. A module with the same names takes their place.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

from swift_mega.compat.redirection import Redirection

KERNELS = "megatron.core.transformer.moe.ops.paged_stash"
NAMES = ("GLOBAL_BLOCK_SIZE", "paged_stash_copy_kernel", "paged_stash_pop_kernel")


def is_needed() -> bool:
    """Whether this megatron-core has those kernels and triton is not installed. Imports neither."""
    megatron = importlib.util.find_spec("megatron")
    folders = (megatron.submodule_search_locations or []) if megatron else []
    has_kernels = any((Path(folder) / "core/transformer/moe/ops/paged_stash.py").is_file() for folder in folders)
    return has_kernels and importlib.util.find_spec("triton") is None


def _stand_in() -> None:
    module = types.ModuleType(KERNELS)
    for name in NAMES:
        setattr(module, name, None)
    sys.modules[KERNELS] = module


def _stands_in() -> bool:
    return all(hasattr(importlib.import_module(KERNELS), name) for name in NAMES)


WITHOUT_TRITON = Redirection(
    name="kernels of the paged stash",
    library="megatron-core",
    why="0.19 imports them at its top, and they import triton",
    names=(),
    apply=_stand_in,
    probe=_stands_in,
)
