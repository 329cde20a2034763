"""Micro-batches for one data-parallel rank, in Megatron's order, from any sample on.

Consecutive samples go round the ranks one micro-batch at a time: micro-batch `i` of rank `r` holds the
samples `consumed + (i · dp_size + r) · micro_batch_size` and the next `micro_batch_size − 1`. A global
batch is therefore the same set of samples for every data-parallel and micro-batch size.

Which samples come next follows from `consumed_samples` alone, so a resumed run reads what the first
one would have read, whatever its workers had read ahead. No random number is drawn here or in a worker.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice

import torch
from torch.utils.data import DataLoader

from swift_mega.data.manifest import token_out_of_range
from swift_mega.data.stream import Sample, Stream

READ_TOGETHER = 4
"""Micro-batches a worker hands over at once, as one tensor: what is costly for the training process is the handing
over (1.05 ms for four tensors per micro-batch of 1 × 1024, 0.25 ms for one per four of them; reading: 0.17 ms)."""

PREFETCH_FACTOR = 2
"""Such tensors per worker on their way; few, because they live in /dev/shm, which containers make small."""

NAMES = ("tokens", "labels", "position_ids", "loss_mask")


class Loader(Iterator[Sample]):
    """An iterator of micro-batches that says how long the training step waited for it.

    Yields:
        tokens, labels, position_ids: int64 `[micro_batch_size, sequence_length]`;
        loss_mask: float32 of the same shape. CPU tensors, all but the mask pinned where there is CUDA.

    Attributes:
        wait_s: seconds spent in `next` since the start; read it at two steps and subtract.
    """

    def __init__(self, stream: Stream, batches: "Batches", num_workers: int) -> None:
        self.stream = stream
        self.wait_s = 0.0
        self._numbers = iter(batches)
        self._ready: deque[Sample] = deque()
        self._read = iter(
            DataLoader(
                stream,
                batch_sampler=_in_groups(batches),
                collate_fn=_pack,
                num_workers=num_workers,
                # Forked workers inherit the mapped files; nothing is pickled, nothing is read twice.
                multiprocessing_context="fork" if num_workers else None,
                prefetch_factor=PREFETCH_FACTOR if num_workers else None,
                worker_init_fn=_start_reader,
                # DataLoader draws a seed for its workers; from the default generator, a start would shift dropout.
                generator=torch.Generator(),
                pin_memory=torch.cuda.is_available(),
            )
        )

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Sample:
        started = time.perf_counter()
        numbers = next(self._numbers)
        if not self._ready:
            self._ready.extend(_unpack(next(self._read), len(numbers)))
        batch = self._ready.popleft()
        if self.stream.unchecked:
            self._check(batch, numbers)
        self.wait_s += time.perf_counter() - started
        return batch

    def _check(self, batch: Sample, numbers: list[int]) -> None:
        """Files without a manifest: a token beyond the embedding must end the run with its name, not in a kernel."""
        for row, number in enumerate(numbers):
            largest = int(torch.maximum(batch["tokens"][row].max(), batch["labels"][row].max()))
            if largest >= self.stream.vocab_size:
                source, within = self.stream.locate(number)
                where = f"{self.stream.sources[source].prefix} (sample {within} of its order)"
                raise token_out_of_range(where, largest, self.stream.vocab_size)


class Batches:
    """The sample numbers of each micro-batch of one rank; a last global micro-batch that is not full is left out."""

    def __init__(self, stop: int, consumed_samples: int, micro_batch_size: int, dp_rank: int, dp_size: int) -> None:
        self.stop = stop
        self.consumed_samples = consumed_samples
        self.micro_batch_size = micro_batch_size
        self.dp_rank = dp_rank
        self.dp_size = dp_size

    def __iter__(self) -> Iterator[list[int]]:
        together = self.micro_batch_size * self.dp_size
        for first in range(self.consumed_samples, self.stop - together + 1, together):
            mine = first + self.dp_rank * self.micro_batch_size
            yield list(range(mine, mine + self.micro_batch_size))


def _in_groups(batches: Batches) -> Iterator[list[int]]:
    """The samples of `READ_TOGETHER` micro-batches at a time."""
    numbers = iter(batches)
    while group := list(islice(numbers, READ_TOGETHER)):
        yield list(chain.from_iterable(group))


def _pack(samples: list[Sample]) -> torch.Tensor:
    """All fields of all samples as one tensor, int64 `[fields, samples, sequence_length]`; a loss mask is 0 or 1."""
    return torch.stack([torch.stack([sample[name] for sample in samples]).long() for name in NAMES])


def _unpack(packed: torch.Tensor, micro_batch_size: int) -> Iterator[Sample]:
    """The micro-batches in a packed tensor."""
    for part in torch.split(packed, micro_batch_size, dim=1):
        batch = dict(zip(NAMES, part, strict=True))
        yield batch | {"loss_mask": batch["loss_mask"].float()}


def loader(
    stream: Stream,
    *,
    consumed_samples: int,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    num_workers: int,
) -> Loader:
    """The micro-batches of this rank from sample `consumed_samples` on, to the end of `stream`.

    Args:
        consumed_samples: samples that all ranks together have trained on; for an evaluation 0.
        micro_batch_size: samples per forward pass and rank.
        num_workers: processes that read ahead; 0 reads inside `next`.

    Raises:
        UserError: this node does not see the cache that rank 0 has written.
    """
    if consumed_samples < len(stream):
        stream[consumed_samples]  # in a reading process a cache that is not there would be said with a traceback
    return Loader(stream, Batches(len(stream), consumed_samples, micro_batch_size, dp_rank, dp_size), num_workers)


def _start_reader(_: int) -> None:
    """What a reading process is to do, and not to do."""
    # It copies a few kilobytes; more threads would take cores from the training process.
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach every process; the reader must live on until the run is saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()  # not `os.getppid()`: it may have been killed since the fork
    assert parent is not None and parent.pid is not None
    threading.Thread(target=_end_when_the_parent_says_so, args=(parent.pid,), daemon=True).start()


def _end_when_the_parent_says_so(parent: int) -> None:
    """The training process ends its readers by SIGTERM, too; anybody else's is not for them.

    A killed one does not say so. Its readers hold its connections open, so that the other ranks would go on waiting.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if received and received.si_pid == parent:
            break
    os._exit(0)
