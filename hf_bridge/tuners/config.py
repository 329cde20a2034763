"""Options of tuners on the command line. Torch-free: `--help` reads it."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class TuningConfig:
    """What is tuned, and how much. What only one tuner has goes into `tuner_options`."""

    target_modules: list[str] = field(default_factory=list)
    """Ends of names, or one regular expression; `all-linear`: every linear layer but the head. Empty: what the tuner
    adapts by itself, for LoRA and its kin `all-linear`."""

    modules_to_save: list[str] = field(default_factory=list)
    """Modules that are trained whole beside the tuner, such as `embed_tokens`."""

    rank: int | None = None
    """Of LoRA and its kin, and of projected gradients. null: the tuner's own, 8 for LoRA."""

    alpha: float | None = None
    """LoRA scales with alpha ÷ rank. null: the tuner's own, 32 for LoRA."""

    dropout: float | None = None
    """Before LoRA's first matrix. null: the tuner's own, 0.05 for LoRA."""

    tuner_options: dict[str, float | int | bool | str | list[str] | None] = field(default_factory=dict)
    """Options of the tuner's own config in its own words: `use_rslora=true` of LoRA, `update_interval=200` of
    GaLore."""

    freeze: list[str] = field(default_factory=list)
    """With `full`: parameters that match one of these regular expressions stay as they are."""

    train_only: list[str] = field(default_factory=list)
    """With `full`: only parameters that match one of these regular expressions are trained."""
