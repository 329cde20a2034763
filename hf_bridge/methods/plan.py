"""What a run will do: rows, tokens, steps, what is trained. The data are read and encoded; weights are not."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from hf_bridge.methods.config import TuneConfig
from hf_bridge.methods.method import Method
from hf_bridge.methods.run import examples_per_step, prepared, resolved, total_steps
from hf_bridge.models.load import read_config
from hf_bridge.tuners.chosen import tuners_of
from hf_bridge.tuners.tuned import Trainable, prepare_model
from swift_mega.base.console import counted
from swift_mega.base.hub import resolve_model

CLASSES = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "seq_cls": transformers.AutoModelForSequenceClassification,
    "token_cls": transformers.AutoModelForTokenClassification,
}


@dataclass(frozen=True)
class Plan:
    """Numbers of a run.

    Attributes:
        examples: by the option that names the data.
        tokens: of an epoch, where the method knows them.
        trained_tokens: of those, with a label.
        fill: share of all positions that hold a token, with packing.
        twice: examples that come a second time in an epoch, so that all processes have equally many.
        trainable: None where the tuner looks at weights to say so.
    """

    method: str
    examples: dict[str, int]
    tokens: int | None
    trained_tokens: int | None
    fill: float | None
    examples_per_step: int
    steps: int
    twice: int
    trainable: Trainable | None

    def __str__(self) -> str:
        lines = [f"{name}: {counted(count, 'sequence')}" for name, count in self.examples.items()]
        if self.tokens is not None:
            trained = f", {self.trained_tokens:,} of them trained on" if self.trained_tokens is not None else ""
            packed = f"; packed, {self.fill:.1%} of all positions hold one" if self.fill is not None else ""
            lines.append(f"{self.tokens:,} tokens an epoch{trained}{packed}")
        lines.append(f"{counted(self.steps, 'step')} with {counted(self.examples_per_step, 'sequence')} each")
        if self.twice:
            lines.append(f"{counted(self.twice, 'sequence')} twice an epoch, so that all processes have equally many")
        if self.trainable is None:
            lines.append("the tuner says what it trains once it has seen the weights")
        else:
            lines.append(f"{self.trainable.count:,} parameters are trained, {self.trainable.share:.2%} of the model")
        return "\n".join(lines)


def plan(config: TuneConfig, method: Method, world_size: int = 1) -> Plan:
    """The plan of a run on so many processes.

    Raises:
        UserError: what the run itself would find wrong with its data.
    """
    config = resolved(config, method)
    _, data = prepared(config, method)
    train = data["dataset"]
    examples, packing = getattr(train, "examples", None), getattr(train, "packing", None)
    batch = examples_per_step(config, world_size) // config.train.gradient_accumulation_steps
    processes = batch // config.train.per_device_train_batch_size
    return Plan(
        method=method.name,
        examples={name: len(found) for name, found in data.items()},
        tokens=getattr(train, "tokens", None),
        trained_tokens=None if examples is None else int(examples.trained.sum()),
        fill=None if packing is None else packing.fill,
        examples_per_step=examples_per_step(config, world_size),
        steps=total_steps(config, len(train) * method.visits(config), world_size),
        twice=-len(train) % batch if processes > 1 else 0,
        trainable=trainable(config, method),
    )


def trainable(config: TuneConfig, method: Method) -> Trainable | None:
    """How much is trained, by a model without weights; None where these are needed to say so."""
    folder = resolve_model(config.model, config.loading.revision, weights=False)
    described: Any = read_config(folder, config.loading)
    with torch.device("meta"):
        model = CLASSES[method.task].from_config(described, trust_remote_code=config.loading.trust_remote_code)
        try:
            return prepare_model(model, tuners_of(config.tuner, config.tuning)).trainable
        except (NotImplementedError, RuntimeError):  # of meta tensors, which have no values
            return None
