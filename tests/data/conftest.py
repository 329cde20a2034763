"""Small indexed data sets, written by megatron-core itself."""

import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

WriteIndexed = Callable[..., str]


@pytest.fixture
def write_indexed(tmp_path: Path) -> WriteIndexed:
    """Write documents (lists of token ids) as `NAME.bin/.idx` without a manifest; gives the prefix back."""

    def write(name: str, documents: Sequence[Sequence[int]], dtype: type = np.uint16) -> str:
        prefix = str(tmp_path / name)
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for document in documents:
            builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
        builder.finalize(f"{prefix}.idx")
        return prefix

    return write


@pytest.fixture
def counting(write_indexed: WriteIndexed) -> Callable[..., str]:
    """Documents of uneven lengths whose tokens count up from `start`, so that a sample shows where it was cut."""

    def write(name: str, tokens: int, start: int = 0) -> str:
        lengths, left = [], tokens
        for number in range(tokens):
            if left == 0:
                break
            lengths.append(min(left, 3 + number * 7 % 11))
            left -= lengths[-1]
        ends = np.cumsum(lengths)
        spans = zip(ends, lengths, strict=True)
        return write_indexed(name, [list(range(start + end - size, start + end)) for end, size in spans])

    return write


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A TCP port nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, for those parts of megatron-core that ask for a rank."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tokenizers: `fast` (byte-level BPE), `bos` (adds BOS and EOS), `python` (no Rust form)."""
    folder = tmp_path_factory.mktemp("tokenizers")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>", "<|begin|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(
        ["In the beginning was the Word, and the Word was with God, and the Word was God."] * 5, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|pad|>")
    fast.save_pretrained(folder / "fast")
    bpe.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|endoftext|>", special_tokens=[("<|begin|>", 2), ("<|endoftext|>", 0)]
    )
    with_bos = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|begin|>", eos_token="<|endoftext|>")
    with_bos.save_pretrained(folder / "bos")
    ByT5Tokenizer().save_pretrained(folder / "python")
    return {path.name: path for path in folder.iterdir()}
