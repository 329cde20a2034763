"""A rank of `Workers`: takes cases from the store until there are no more. Started by torchrun."""

import gc
import importlib
import os
import pickle
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from swift_mega import compat

compat.install()

import torch  # noqa: E402
from torch._C._distributed_c10d import PrefixStore, TCPStore  # noqa: E402

from swift_mega.parallel import groups  # noqa: E402

SESSION = timedelta(hours=3)
COLLECTIVE = timedelta(seconds=60)


def main() -> None:
    """Run every case that this rank takes part in."""
    rank = int(os.environ["RANK"])
    store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=SESSION)
    number = 0
    while True:
        file = Path(store.get(f"case/{number}").decode())
        case = pickle.loads(file.read_bytes())
        if case is None:
            break
        if rank < case[2]:
            result = file.with_name(f"result-{number}-{rank}")
            result.write_bytes(pickle.dumps(_outcome(store, number, rank, case)))
            store.set(f"result/{number}/{rank}", str(result))
        if number % 10 == 9:
            gc.collect()  # models hold their groups in cycles, and each group has threads that poll
        number += 1


def _outcome(store: TCPStore, number: int, rank: int, case: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether the case's function returned in a world of its own, and its value or traceback."""
    module, name, world_size, args, kwargs = case
    os.environ["WORLD_SIZE"] = str(world_size)
    fresh = PrefixStore(f"world/{number}", store)
    torch.distributed.init_process_group("gloo", store=fresh, rank=rank, world_size=world_size, timeout=COLLECTIVE)
    try:
        return True, getattr(importlib.import_module(module), name)(*args, **kwargs)
    except BaseException:  # noqa: BLE001 - whatever a case raises is its result; the process lives on
        store.set(f"failure/{number}", f"rank {rank}:\n{traceback.format_exc()}")
        return False, traceback.format_exc()
    finally:
        groups.shutdown()


if __name__ == "__main__":
    main()
