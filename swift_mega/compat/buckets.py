"""Gradient buckets whose padding counts, so that optimizer state is saved from where it is.

megatron-core 0.16 pads every bucket of a gradient buffer, and places parameters in the padded buffer.
Its fully reshardable checkpoint however lays the buckets end to end *without* their padding and reads
parameters at their padded places: from the second bucket on, state is saved shifted by the padding of
the buckets before ("param range exceeds unpadded buffer … can lead to data corruption" in its log, and
only for the last parameter). Tied embeddings with pipeline parallelism have two buckets; overlapping
the gradient reduction makes more.
"""

from collections.abc import Iterable

from megatron.core.distributed import DistributedDataParallel


def count_padding(chunks: Iterable[DistributedDataParallel]) -> None:
    """Let buckets and buffers count their padding as content; then both places are the same."""
    for chunk in chunks:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            for bucket in buffer.buckets:
                bucket.numel_unpadded = bucket.grad_data.numel()
            buffer.numel_unpadded = buffer.numel
