"""Training samples in an order that never depends on how long the run is.

megatron-core's `GPTDataset` cuts documents into samples and shuffles them. Asked for `N` samples it
shuffles `N` samples' worth of epochs together, so a run extended from 1,000 to 2,000 steps would see
other data from its very first step. Here each source has one `GPTDataset` **per epoch**, seeded by
the epoch, and sample `j` of a source with `n` samples per epoch is sample `j mod n` of epoch `j // n`.
Sources are mixed by megatron-core's `build_blending_indices`, which decides sample `k` from the
samples before `k` alone. So sample `k` follows from sources, weights, split, sequence length and seed:
a run can be stopped, resumed on another layout, and extended, and reads what it would have read.

Epoch 0 uses the run's seed itself: over the first epoch the order is exactly Megatron-LM's own.
"""

import dataclasses
import functools
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets import helpers
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from swift_mega.base.console import say
from swift_mega.base.errors import UserError
from swift_mega.base.writing import write_errors_are_the_users
from swift_mega.data import manifest, shares
from swift_mega.data.blend import parse_blend
from swift_mega.data.config import DataConfig
from swift_mega.data.tokenizer import TokenizerInfo
from swift_mega.parallel.agree import on_main

Sample = dict[str, torch.Tensor]
"""tokens, labels, position_ids: int64 [sequence_length]; loss_mask: float32 [sequence_length]."""


@dataclass(frozen=True)
class Streams:
    """What a run reads. `valid` and `test` are None where there is nothing to evaluate on."""

    train: "Stream"
    valid: "Stream | None"
    test: "Stream | None"


def build_streams(
    config: DataConfig,
    *,
    seed: int,
    total_train_samples: int,
    eval_samples: int,
    vocab_size: int,
    eod: int | None,
    cache_dir: str | Path,
    tokenizer: TokenizerInfo | None = None,
    consumed_samples: int = 0,
) -> Streams:
    """The samples of a run; call it on every rank, after `torch.distributed` is up where it is used.

    Every rank checks the files itself; rank 0 alone writes the shuffled indexes to `cache_dir`, which
    all ranks must see. They are keyed by what they follow from, so any layout and any later start finds them.

    Args:
        total_train_samples: steps × global batch size: the length of `train`.
        eval_samples: length of `valid` and of `test`: always the first ones, so always the same.
        vocab_size: token ids the model knows, padding of the embedding left out.
        eod: end-of-document id; needed only for `config.eod_mask_loss`.
        tokenizer: of the model, compared with the manifests; None leaves that out.
        consumed_samples: training samples that no start of this run will read again.

    Raises:
        UserError: nothing to read, a source that is missing, damaged, empty, tokenized otherwise or
            shorter than one sample, a split or weight that makes no sense, a full disk.
    """
    maker = _Maker(config, seed, vocab_size, eod, Path(cache_dir), tokenizer)
    found = {
        name: maker.stream(entries, part, name, total_train_samples if name == "train" else eval_samples)
        for name, (entries, part) in shares.streams(config, evaluates=eval_samples > 0).items()
    }
    streams = Streams(found["train"], found.get("valid"), found.get("test"))
    evaluated = [stream for stream in (streams.valid, streams.test) if stream]

    def write_indexes() -> None:
        streams.train.prepare(consumed_samples)
        for stream in evaluated:
            stream.prepare()

    on_main(write_indexes)
    for stream in evaluated:
        times = math.ceil(max(stream.epochs()))
        if times > 1:
            say(f"{stream.name}: an evaluation takes {eval_samples} samples; some of its text counts {times} times")
    return streams


@dataclass(frozen=True)
class _Maker:
    """What all streams of a run share."""

    config: DataConfig
    seed: int
    vocab_size: int
    eod: int | None
    cache_dir: Path
    tokenizer: TokenizerInfo | None

    def stream(self, entries: list[str], part: shares.Part, name: str, samples: int) -> "Stream":
        prefixes, weights = parse_blend(entries)
        sources = [self._source(prefix, part, name) for prefix in prefixes]
        weights = weights or [float(source.samples) for source in sources]
        weights = [weight / sum(weights) for weight in weights]
        return Stream(name, sources, weights, samples, self.cache_dir, self.vocab_size)

    def _source(self, prefix: str, part: shares.Part, name: str) -> "Source":
        index, described = manifest.check(prefix, self.vocab_size, self.tokenizer)
        length = self.config.sequence_length
        first, last, tokens = shares.documents(index, part, name, length)
        lengths = index.lengths[first:last]
        key = hashlib.blake2b(lengths.tobytes(), digest_size=12).hexdigest()
        return Source(
            prefix=prefix,
            documents=np.arange(first, last, dtype=np.int32),
            samples=(tokens - 1) // length,
            trusted=described is not None,
            seed=self.seed,
            cache_dir=self.cache_dir / f"{key}-{first}-{last}-{length}",
            config=self._gpt_config(prefix),
        )

    def _gpt_config(self, prefix: str) -> GPTDatasetConfig:
        if self.config.eod_mask_loss and self.eod is None:
            raise UserError(
                "`data.eod_mask_loss` needs an end-of-document id; the tokenizer names none.", "Leave it off."
            )
        return GPTDatasetConfig(
            random_seed=self.seed,
            sequence_length=self.config.sequence_length,
            blend=([prefix], None),
            split="1,0,0",  # the documents of the split are chosen in _source
            tokenizer=_Tokenizer(self.vocab_size, self.eod),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=self.config.eod_mask_loss,
            create_attention_mask=False,
        )


class _Tokenizer:
    """As much of a tokenizer as `GPTDataset` asks for. Without `pad`, no token of a text is taken for padding."""

    def __init__(self, vocab_size: int, eod: int | None) -> None:
        self.vocab_size = vocab_size
        self.eod = -2 if eod is None else eod  # no token; -1 is what GPTDataset itself takes for padding
        # Goes into the name of a cached index; an index depends on document lengths only, not on the tokenizer.
        self.unique_identifiers: dict[str, str] = {}


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one pass over a source: `seed` itself for epoch 0, then unrelated ones below 2³²."""
    return seed if epoch == 0 else int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


class Source:
    """One `.bin/.idx` pair as an endless row of samples, epoch after epoch.

    Args:
        documents: those of this split, int32.
        samples: per epoch: (tokens − 1) // sequence_length.
        trusted: a manifest vouches that no token is beyond the vocabulary.
        cache_dir: one folder per epoch goes here; its name must hold all that an index follows from except the seed.
        config: of the `GPTDataset` of one epoch, without seed and cache.
    """

    def __init__(
        self,
        *,
        prefix: str,
        documents: np.ndarray,
        samples: int,
        trusted: bool,
        seed: int,
        cache_dir: Path,
        config: GPTDatasetConfig,
    ) -> None:
        self.prefix = prefix
        self.documents = documents
        self.samples = samples
        self.trusted = trusted
        self.seed = seed
        self.cache_dir = cache_dir
        self.config = config
        self.tokens = IndexedDataset(prefix)
        # A pass maps three files, so only a few stay open: reading ahead crosses one boundary at a time.
        self.epoch = functools.lru_cache(maxsize=4)(self._open_epoch)

    def __getitem__(self, number: int) -> Sample:
        epoch, within = divmod(number, self.samples)
        sample: Sample = self.epoch(epoch)[within]
        return sample

    def _open_epoch(self, epoch: int) -> GPTDataset:
        folder = self._folder(epoch)
        if not folder.is_dir():
            raise _not_seen(folder)
        dataset = self._dataset(epoch, folder)
        assert len(dataset) == self.samples, f"{len(dataset)} samples in an epoch of {self.samples}"
        return dataset

    def write_epoch(self, epoch: int) -> None:
        """Build the index of one pass in a scratch folder and rename it: a folder that exists is complete."""
        folder = self._folder(epoch)
        if folder.is_dir():
            return
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache_dir) as scratch:
            self._dataset(epoch, Path(scratch, "built"))
            # Another run may have built the same folder meanwhile; then ours is dropped.
            if not folder.is_dir():
                os.replace(Path(scratch, "built"), folder)

    def _dataset(self, epoch: int, folder: Path) -> GPTDataset:
        """One pass in its own order; GPTDataset reads the index in `folder`, or on rank 0 builds it there."""
        config = dataclasses.replace(self.config, random_seed=epoch_seed(self.seed, epoch), path_to_cache=str(folder))
        return GPTDataset(self.tokens, self.cache_dir.name, self.documents, None, Split.train, config)

    def _folder(self, epoch: int) -> Path:
        return self.cache_dir / f"seed-{epoch_seed(self.seed, epoch)}"


class Stream(torch.utils.data.Dataset[Sample]):
    """Samples 0 … `len` − 1 of weighted sources; see the module's docstring for the order.

    Attributes:
        name: train, valid or test.
        unchecked: some source has no manifest, so its token ids are checked as they are read.
    """

    def __init__(
        self, name: str, sources: list[Source], weights: list[float], samples: int, cache_dir: Path, vocab_size: int
    ) -> None:
        self.name = name
        self.sources = sources
        self.weights = weights
        self.samples = samples
        self.cache_dir = cache_dir
        self.vocab_size = vocab_size
        self.unchecked = not all(source.trusted for source in sources)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < self.samples:
            raise IndexError(f"sample {number} of {self.samples}")
        source, within = self.locate(number)
        return self.sources[source][within]

    def locate(self, number: int) -> tuple[int, int]:
        """Which source sample `number` comes from, and its number among the samples of that source."""
        if len(self.sources) == 1:
            return 0, number
        choice, within = self._blend
        return int(choice[number]), int(within[number])

    def epochs(self) -> list[float]:
        """Passes over each source that the whole stream amounts to, for the log."""
        return [share * self.samples / source.samples for share, source in zip(self.weights, self.sources, strict=True)]

    def prepare(self, first: int = 0) -> None:
        """Write the blend and the indexes of all epochs that samples `first` … take, where the cache lacks them.

        Raises:
            UserError: the cache cannot be written.
        """
        with write_errors_are_the_users(self.cache_dir, option="`data.cache_dir`"):
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            for source, epoch in self._epochs_from(first):
                source.write_epoch(epoch)

    def _epochs_from(self, first: int) -> Iterator[tuple[Source, int]]:
        if first >= self.samples:
            return
        if len(self.sources) > 1:
            _write_blend(self._blend_file, self.weights, self.samples)
        for number, source in enumerate(self.sources):
            if len(self.sources) == 1:
                begin, end = first, self.samples
            else:
                choice, _ = self._blend
                begin = int(np.count_nonzero(choice[:first] == number))
                end = begin + int(np.count_nonzero(choice[first:] == number))
            if end > begin:
                yield from (
                    (source, epoch) for epoch in range(begin // source.samples, (end - 1) // source.samples + 1)
                )

    @property
    def _blend_file(self) -> Path:
        key = hashlib.blake2b(repr(self.weights).encode(), digest_size=16).hexdigest()
        return self.cache_dir / f"blend-{key}-{self.samples}"

    @functools.cached_property
    def _blend(self) -> tuple[np.ndarray, np.ndarray]:
        """Per sample: the source (int16) and its number within the source (int64), mapped from the cache."""
        files = [Path(f"{self._blend_file}-{part}.npy") for part in ("source", "sample")]
        for file in files:
            if not file.is_file():
                raise _not_seen(file)
        choice, within = (np.load(file, mmap_mode="r") for file in files)
        return choice, within


def _not_seen(path: Path) -> UserError:
    """Rank 0 has written it."""
    return UserError(f"{path} is not there.", "`data.cache_dir` must be a folder that all nodes see.")


def _write_blend(file: Path, weights: list[float], samples: int) -> None:
    """megatron-core's greedy blend: sample k comes from the source that is furthest behind its share of k."""
    if all(Path(f"{file}-{part}.npy").is_file() for part in ("source", "sample")):
        return
    choice, within = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    helpers.build_blending_indices(choice, within, np.array(weights), len(weights), samples, False)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        for part, array in (("source", choice), ("sample", within)):
            np.save(f"{scratch}/{part}.npy", array)
            os.replace(f"{scratch}/{part}.npy", f"{file}-{part}.npy")
