"""What a run reads. Torch-free: `--help` and the launcher read it."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class DataConfig:
    """Megatron `.bin/.idx` files, as `swift-mega data build` writes them."""

    train: list[str] = field(default_factory=list)
    """Prefixes of .bin/.idx pairs, each optionally preceded by its weight in the blend: `0.7 data/books`.
    Without weights every source is read equally often."""

    valid: list[str] = field(default_factory=list)
    """As `train`, for evaluation. Empty: cut from `train` by `split`."""

    test: list[str] = field(default_factory=list)
    """As `train`, evaluated once at the end. Empty: cut from `train` by `split`."""

    split: str = "100,0,0"
    """Shares of the documents of `train` for train, valid and test."""

    sequence_length: int = 1024
    """Tokens per sample."""

    eod_mask_loss: bool = False
    """Leave positions that hold the end-of-document token out of the loss."""

    cache_dir: str | None = None
    """Where the shuffled indexes are kept. null: `cache/` in the output folder."""

    num_workers: int = 2
    """Processes per rank that read ahead. 0: read in the training process."""
