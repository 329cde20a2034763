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


def make_inputs(folder: Path, sequence: int) -> None:
    """`folder/model` in Hugging Face format, and `folder/data.bin/.idx` in documents of two samples each."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder / "model")  # type: ignore[arg-type]
    builder = IndexedDatasetBuilder(str(folder / "data.bin"), dtype=np.uint16)
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], TOKENS)
    for start in range(0, TOKENS, 2 * sequence):
        document = torch.from_numpy(tokens[start : start + 2 * sequence])
        builder.add_document(document, [len(document)])
    builder.finalize(str(folder / "data.idx"))
