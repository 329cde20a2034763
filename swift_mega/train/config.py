"""How a run steps, schedules, saves and reports. Torch-free: `--help` and the launcher read it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class TrainConfig:
    """The loop."""

    steps: int
    """Optimizer steps of the whole run, resumes included."""

    micro_batch_size: int = 1
    """Samples per forward pass and data-parallel rank."""

    global_batch_size: int = 1
    """Samples per optimizer step over all ranks; the quotient by micro batch × DP is the gradient accumulation."""

    seed: int = 1234
    """Of initial weights, dropout and data order."""

    stop_after_steps: int | None = None
    """Save and stop after this many steps of this start; the schedule still spans `steps`."""

    eval_interval_steps: int | None = None
    """Steps between evaluations. null: only before the first step of the run and after the last of each start."""

    eval_batches: int = 10
    """Global batches per evaluation, always the same ones."""

    recompute_granularity: Literal["selective", "full"] | None = None
    """Activations computed again in the backward pass: attention only, or whole layers."""

    recompute_num_layers: int = 1
    """Layers per checkpointed block with full recomputation."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW on megatron-core's distributed optimizer, and its learning rate."""

    lr: float = 1e-5
    """Peak learning rate."""

    min_lr: float = 0.0
    """Where the decay ends."""

    weight_decay: float = 0.1
    """Decoupled; not on biases and norms, as in Megatron."""

    adam_beta1: float = 0.9
    """Decay of the first moment."""

    adam_beta2: float = 0.95
    """Decay of the second moment."""

    adam_eps: float = 1e-8
    """Added to the root of the second moment."""

    clip_grad: float = 1.0
    """Largest global gradient norm. 0: no clipping."""

    lr_decay_style: Literal["constant", "linear", "cosine", "WSD", "inverse-square-root"] = "cosine"
    """Shape of the schedule after warm-up."""

    lr_warmup_steps: int = 0
    """Linear rise from zero."""

    lr_decay_steps: int | None = None
    """Step at which `min_lr` is reached. null: `train.steps`."""

    lr_wsd_decay_steps: int | None = None
    """Length of WSD's final decay. null: a tenth of `train.steps`."""

    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = "exponential"
    """Shape of WSD's final decay."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """What is kept, and where a start continues."""

    save_interval_steps: int | None = None
    """Steps between checkpoints. null: only at the end and when stopped."""

    keep_last: int = 2
    """Checkpoints that stay. 0: all."""

    resume: str = "auto"
    """`auto`: the newest checkpoint in the output folder, if any; `never`: refuse a used folder; path: begin there."""

    export_hf: bool = False
    """Also write each checkpoint's weights as a Hugging Face folder under `hf/`, every rank its own slices."""


@dataclass(kw_only=True)
class LogConfig:
    """What is written down while it runs; metrics.jsonl and loss.png always are."""

    interval_steps: int = 1
    """Steps between log lines; only these synchronise with the device."""

    tensorboard: bool = True
    """Write `tensorboard/` in the output folder where the package is installed."""

    wandb_project: str | None = None
    """Also report to this Weights & Biases project."""
