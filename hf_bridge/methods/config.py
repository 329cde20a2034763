"""What a tuning run is told. Torch-free: `--help` reads it."""

from dataclasses import dataclass, field
from typing import Literal

from hf_bridge.data.config import RowsConfig
from hf_bridge.models.config import LoadingConfig
from hf_bridge.parallel.config import ParallelConfig
from hf_bridge.templates.config import TemplateConfig
from hf_bridge.tuners.config import TuningConfig

LongRows = Literal["truncate", "drop", "split", "raise"]


@dataclass(kw_only=True)
class LengthConfig:
    """How long examples are, and whether several share a sequence."""

    max_length: int = 2048
    """Tokens of the longest example, and of a packed sequence."""

    long_rows: LongRows | None = None
    """A longer row: keep its first tokens, leave it out (counted and reported), make several of it, or stop. null:
    leave it out; of texts in pretraining make several."""

    packing: bool = False
    """Put several rows in one sequence, none of which sees another."""


@dataclass(kw_only=True)
class TrainingConfig:
    """The loop, in the words of transformers' TrainingArguments."""

    num_train_epochs: float = 1.0
    """Passes over the rows."""

    max_steps: int = -1
    """Optimizer steps, in the place of `num_train_epochs`. -1: as many as these make."""

    per_device_train_batch_size: int = 1
    """Rows, or packed sequences, of one forward pass."""

    per_device_eval_batch_size: int = 1
    """The same in evaluation."""

    gradient_accumulation_steps: int = 16
    """Forward passes of one optimizer step."""

    learning_rate: float | None = None
    """Peak. null: 1e-4 with a tuner, 1e-5 where all weights are trained."""

    lr_scheduler_type: str = "cosine"
    """Its shape, by a name of transformers."""

    lr_scheduler_kwargs: dict[str, float | int | bool | str | None] = field(default_factory=dict)
    """What only this shape has: `min_lr=1e-6` of `cosine_with_min_lr`, `num_decay_steps=9` of `warmup_stable_decay`."""

    warmup_ratio: float = 0.03
    """Share of all steps in which it rises from 0; less than one step is none."""

    weight_decay: float = 0.01
    """Decoupled, not on biases and norms."""

    max_grad_norm: float = 1.0
    """Largest global gradient norm. 0: no clipping."""

    optim: str = "adamw_torch"
    """By a name of transformers, such as `adamw_bnb_8bit`."""

    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass."""

    seed: int = 42
    """Of new weights, dropout and the order of rows."""

    resume: str = "auto"
    """`auto`: from the newest complete checkpoint in the output folder, if any; `never`: refuse a used folder; path:
    from that checkpoint."""

    save_steps: int | None = None
    """Steps between checkpoints. null: only at the end and when stopped."""

    save_total_limit: int | None = 2
    """Checkpoints that stay, and the best one besides. null: all."""

    eval_steps: int | None = None
    """Steps between evaluations. null: before the first step and after the last."""

    load_best: bool = False
    """End with the weights of the checkpoint whose held-out loss was lowest."""

    stop_after_steps: int | None = None
    """Save and stop after this many steps of this start; the schedule still spans the whole run."""

    early_stopping: int | None = None
    """Evaluations without a better held-out loss after which the run ends."""

    predict_with_generate: bool = False
    """Evaluation also lets the model answer, and compares with ROUGE-L and exact match."""

    logging_steps: int = 1
    """Steps between lines of metrics.jsonl."""

    tensorboard: bool = True
    """Write `tensorboard/` in the output folder where the package is installed."""

    wandb_project: str | None = None
    """Also report to this Weights & Biases project."""


@dataclass(kw_only=True)
class TuneConfig:
    """What every method is told."""

    model: str
    """Folder or id: `Qwen/Qwen3-0.6B`, `ms::Qwen/Qwen3-0.6B`."""

    output: str
    """Folder of the run."""

    tuner: str = "lora"
    """How it is tuned: `lora`, `dora`, `galore`, …, or `full`; several are joined by `+`."""

    loading: LoadingConfig = field(default_factory=LoadingConfig)
    data: RowsConfig = field(default_factory=RowsConfig)
    text: TemplateConfig = field(default_factory=TemplateConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    train: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
