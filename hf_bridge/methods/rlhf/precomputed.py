"""Log-probabilities of answers under the reference, computed once and kept on disk.

    CACHE/reference/KEY.npy    [examples, 2] float32: of the chosen and of the rejected answer

KEY is the checksum of the examples and of the reference's weights.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from hf_bridge.data.store import default_cache
from hf_bridge.methods.method import Setup
from hf_bridge.methods.rlhf.examples import Pair
from swift_mega.base.console import progress
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users


class WithReference(torch.utils.data.Dataset[tuple[Pair, np.ndarray]]):
    """Pairs, each with its two log-probabilities."""

    def __init__(self, pairs: Sequence[Pair], logps: np.ndarray) -> None:
        self.pairs, self.logps = pairs, logps
        self.tokens = sum(pair.tokens for pair in pairs) if isinstance(pairs, list) else pairs.tokens  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Pair, np.ndarray]:
        return self.pairs[number], self.logps[number]


def with_reference(trainer: Any, setup: Setup, pairs: Any) -> WithReference:
    """The pairs with what the reference says of them, from the disk or onto it.

    Raises:
        UserError: the weights lie in several processes.
    """
    if setup.config.parallel.deepspeed or setup.config.parallel.fsdp:
        raise UserError("`--reference.precompute_ref` is for weights that lie in one process.", "Leave it out.")
    config = setup.config.data
    cache = (Path(config.cache_dir).expanduser() if config.cache_dir else default_cache()).parent / "reference"
    model = trainer.ref_model or trainer.model
    file = cache / f"{_key(model, pairs)}.npy"
    if not file.is_file():
        table = _computed(trainer, model, pairs)
        with write_errors_are_the_users(cache, option="`data.cache_dir`"):
            cache.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{trainer.accelerator.process_index}.partial")
            with partial.open("wb") as stream:
                np.save(stream, table)
            partial.replace(file)
    return WithReference(pairs, np.load(file, mmap_mode="r"))


def _computed(trainer: Any, model: Any, pairs: Sequence[Pair]) -> np.ndarray:
    """[examples, 2]; each process computes every nth example."""
    size = trainer.args.per_device_eval_batch_size
    mine = list(range(trainer.accelerator.process_index, len(pairs), trainer.accelerator.num_processes))
    rows = list[tuple[int, list[float]]]()
    model.eval()
    with progress(len(mine), "reference", "pair") as bar:
        for first in range(0, len(mine), size):
            numbers = mine[first : first + size]
            batch = trainer._prepare_inputs(trainer.data_collator([pairs[number] for number in numbers]))
            both = torch.stack(trainer.compute_ref_log_probs(model, batch), 1).float().tolist()
            rows += zip(numbers, both, strict=True)
            bar.update(len(numbers))
    table = np.zeros((len(pairs), 2), np.float32)
    for number, values in gather_object(rows):
        table[number] = values
    return table


def _key(model: Any, pairs: Any) -> str:
    """Of the examples, and of the weights that are not a tuner's."""
    tuners = set(getattr(model, "peft_config", {}))
    digest = hashlib.sha256(pairs.folder.name.encode())
    for name, parameter in model.named_parameters():
        if not tuners & set(name.split(".")):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
