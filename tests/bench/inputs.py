"""What the benchmarks train: a Llama of SmolLM2's width with four layers, and random tokens."""

from pathlib import Path

import numpy as np

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
TOKENS = 200_000
STRETCH_STEPS = 6
"""Steps that one side trains before it is the other's turn, where sides do not alternate step by step."""


def make_inputs(folder: Path, sequence: int) -> None:
    """`folder/model` in Hugging Face format, and `folder/data.bin/.idx` in documents of two samples each."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder / "model")
    write_tokens(folder / "data", int(SHAPE["vocab_size"]), TOKENS, 2 * sequence)


def write_tokens(prefix: Path, below: int, count: int, per_document: int) -> None:
    """`prefix.bin/.idx`: `count` random tokens smaller than `below`."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    tokens = np.random.default_rng(0).integers(0, below, count)
    for start in range(0, count, per_document):
        document = torch.from_numpy(tokens[start : start + per_document])
        builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")
