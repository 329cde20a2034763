"""The whole of a pretraining run in one dataclass: the schema of `run.yaml` and of the options."""

from dataclasses import dataclass, field

from swift_mega.data.config import DataConfig
from swift_mega.model.config import ModelConfig
from swift_mega.parallel.config import ParallelConfig
from swift_mega.train.config import CheckpointConfig, LogConfig, OptimizerConfig, TrainConfig


@dataclass(kw_only=True)
class PretrainConfig:
    """Everything that decides a run; saved with it and with every checkpoint."""

    output: str
    """Folder of the run: checkpoints, metrics, plots. A folder that holds another run is refused."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
