"""Options of the experiments. Torch-free: `--help` reads it."""

from dataclasses import dataclass, field

from hf_bridge.data.config import RowsConfig
from hf_bridge.methods.config import LengthConfig, TrainingConfig
from hf_bridge.models.config import LoadingConfig
from hf_bridge.templates.config import TemplateConfig

LEARNING_RATE = 5e-5
"""Of Table 3, where none is given."""


@dataclass(kw_only=True)
class BenchTunersConfig:
    """A benchmark of tuners. The defaults are the SWIFT paper's Table 3, its learning rate of 5e-5 included."""

    model: str
    """Folder or id: `Qwen/Qwen3-0.6B`, `ms::Qwen/Qwen3-0.6B`."""

    output: str
    """Folder of the results; those that are there are kept, and the missing ones made."""

    tuners: list[str] = field(default_factory=list)
    """Which to compare, such as `lora full`. Empty: the ten of the paper's Table 4."""

    lora_rank: int = 8
    """Of LoRA and its kin."""

    galore_rank: int = 128
    """Of the subspaces of GaLore and Q-GaLore."""

    llamapro_new_blocks: int = 4
    """New layers of LLaMA-Pro; the number of layers has to be a multiple of it."""

    lisa_activated_layers: int = 2
    """Layers that LISA trains at a time."""

    loading: LoadingConfig = field(default_factory=LoadingConfig)
    data: RowsConfig = field(default_factory=RowsConfig)
    text: TemplateConfig = field(default_factory=TemplateConfig)
    length: LengthConfig = field(default_factory=LengthConfig)
    train: TrainingConfig = field(default_factory=TrainingConfig)
