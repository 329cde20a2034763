"""What the tests of sequence parallelism run on every rank, and the single process that they are compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback

from hf_bridge.data.packing import attention_mask
from hf_bridge.methods.config import TuneConfig
from hf_bridge.methods.sft import sft
from hf_bridge.parallel.config import ParallelConfig
from hf_bridge.parallel.sequence import join
from hf_bridge.templates.encoding import IGNORED
from swift_mega.base.errors import UserError

Batch = dict[str, Tensor]


def batch(rows: list[list[int]], length: int, vocabulary: int, seed: int = 0) -> Batch:
    """Sequences of `length`, each with rows of these lengths and padding behind them; a third is not trained on."""
    draw = np.random.default_rng(seed)
    shape = (len(rows), length)
    tokens, weights = draw.integers(2, vocabulary, shape), draw.choice([0.0, 0.5, 3.0], shape)
    positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for n, sizes in enumerate(rows):
        ends = np.cumsum(sizes)
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True), 1):
            positions[n, end - size : end], segments[n, end - size : end] = np.arange(size), number
            weights[n, end - size] = 0.0  # the first token of a row is not predicted from the row before it
        weights[n, ends[-1] :] = 0.0
    following = np.pad(weights[:, 1:], ((0, 0), (0, 1)))
    labels = np.where(following > 0, np.pad(tokens[:, 1:], ((0, 0), (0, 1))), IGNORED)
    arrays = {"input_ids": tokens, "shift_labels": labels, "position_ids": positions, "segments": segments}
    made = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return made | {"loss_weights": torch.from_numpy(following).float()}


def model(folder: Path, attention: str = "eager") -> Any:
    """In fp32, with all weights trained."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)


def whole(folder: Path, data: Batch) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one process, with eager attention and a mask made from the segments."""
    single = model(folder)
    seen = torch.stack([torch.from_numpy(attention_mask(row.numpy())) for row in data["segments"]])
    window = _windows(single.config, seen)
    masks = {kind: torch.zeros(m.shape).masked_fill(~m, -1e30)[:, None] for kind, m in window.items()}
    mask: Any = masks if len(masks) > 1 else next(iter(masks.values()))
    logits = single(input_ids=data["input_ids"], position_ids=data["position_ids"], attention_mask=mask).logits
    return _outcome(single, logits, data["shift_labels"], data["loss_weights"], data["loss_weights"].sum())


def _windows(config: Any, seen: Tensor) -> dict[str, Tensor]:
    """What is seen in each kind of layers."""
    size, window = seen.shape[-1], getattr(config, "sliding_window", None)
    near = torch.arange(size)[:, None] - torch.arange(size)[None, :] < (window or size)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    return {kind: seen & near if kind == "sliding_attention" else seen for kind in sorted(kinds)}


def shared(folders: list[Path], mode: Any, batches: list[Batch], size: int) -> list[tuple[float, dict[str, Tensor]]]:
    """The same of a group of processes that share each sequence: the sums over all ranks."""
    share = join(ParallelConfig(sequence_parallel_size=size, sequence_parallel_mode=mode))
    assert share is not None
    outcomes = []
    for folder, data in zip(folders, batches, strict=True):
        shared_model = model(folder, "sdpa")
        share.attach(shared_model)
        part = share.layout.split(data)
        total = part["loss_weights"].sum()
        dist.all_reduce(total)
        inputs = {name: part[name] for name in ("input_ids", "position_ids", "segments")}
        logits = shared_model(**inputs).logits
        loss, gradients = _outcome(shared_model, logits, part["shift_labels"], part["loss_weights"], total)
        for gradient in gradients.values():
            dist.all_reduce(gradient)
        together = torch.tensor(loss, dtype=torch.float64)
        dist.all_reduce(together)
        outcomes.append((float(together), gradients))
    return outcomes


def _outcome(
    trained: Any, logits: Tensor, labels: Tensor, weights: Tensor, total: Tensor
) -> tuple[float, dict[str, Tensor]]:
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    loss = (losses * weights.flatten()).sum() / total
    loss.backward()
    gradients = {name: weight.grad for name, weight in trained.named_parameters() if weight.grad is not None}
    return float(loss.detach()), gradients


def rows(size: int) -> list[list[int]]:
    """What a process is given of five rows."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    share = join(ParallelConfig(sequence_parallel_size=size))
    assert share is not None
    loader = Accelerator(cpu=True).prepare(torch.utils.data.DataLoader(range(5), batch_size=2))  # type: ignore[arg-type]
    return [batch.tolist() for batch in share.loader(loader)]


def refusals(folders: list[Path]) -> list[str]:
    """What is said of each model whose heads three processes are to share."""
    said = []
    share = join(ParallelConfig(sequence_parallel_size=3))
    assert share is not None
    for folder in folders:
        try:
            share.attach(model(folder))
        except UserError as error:
            said.append(str(error))
    return said


class Look(TrainerCallback):
    """What the model is while it is trained."""

    kind = ""

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        weight = next(base.parameters())
        kinds = {
            "fsdp2": hasattr(weight, "full_tensor"),
            "zero3": hasattr(weight, "ds_id") and weight.numel() == 0,
            base.config._attn_implementation: base.config._attn_implementation in ("ulysses", "ring"),
        }
        self.kind = " ".join(name for name, holds in kinds.items() if holds)


def tuned(config: TuneConfig) -> str:
    """How a run in this world shares its model and sequences; or what it refuses."""
    look = Look()
    try:
        sft(config, [look])
    except UserError as error:
        return str(error)
    return look.kind
