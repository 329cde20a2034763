"""A rank of `Workers`: takes cases from the store until there are no more. Started by torchrun."""

import importlib
import os
import pickle
import sys
import traceback
from datetime import timedelta
from typing import Any

from swift_mega import compat

compat.install()

import torch  # noqa: E402
from torch.distributed import PrefixStore, TCPStore  # noqa: E402

from swift_mega.parallel import groups  # noqa: E402

SESSION = timedelta(hours=3)
COLLECTIVE = timedelta(seconds=60)


def main() -> None:
    """Run every case that this rank takes part in."""
    rank = int(os.environ["RANK"])
    store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=SESSION)
    number = 0
    while (case := pickle.loads(store.get(f"case/{number}"))) is not None:
        module, name, world_size, args, kwargs = case
        if rank < world_size:
            _run(store, number, rank, world_size, (module, name, args, kwargs))
        number += 1


def _run(store: TCPStore, number: int, rank: int, world_size: int, call: tuple[str, str, Any, Any]) -> None:
    module, name, args, kwargs = call
    os.environ["WORLD_SIZE"] = str(world_size)
    fresh = PrefixStore(f"world/{number}", store)
    torch.distributed.init_process_group("gloo", store=fresh, rank=rank, world_size=world_size, timeout=COLLECTIVE)
    try:
        function = getattr(importlib.import_module(module), name)
        outcome = (True, function(*args, **kwargs))
    except BaseException:  # noqa: BLE001 - whatever a case raises is its result; the process lives on
        outcome = (False, traceback.format_exc())
        store.set(f"failure/{number}", pickle.dumps(f"rank {rank}:\n{outcome[1]}"))
    store.set(f"result/{number}/{rank}", pickle.dumps(outcome))
    groups.shutdown()


if __name__ == "__main__":
    main()
