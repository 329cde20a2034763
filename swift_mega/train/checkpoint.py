"""Saving and resuming: megatron-core's `torch_dist` with the fully reshardable optimizer, made atomic.

    ROOT/latest_checkpointed_iteration.txt    the newest complete step, written last
    ROOT/iter_0000012/                        one checkpoint, whole or not there: renamed when complete
         ├── *.distcp .metadata common.pt     weights, optimizer, RNG of every rank; step and schedule
         ├── hf/                              config and tokenizer, so that an export needs nothing else
         └── run.yaml                         the resolved configuration that wrote it

Weights and optimizer state load on any TP, PP, VPP or DP. The random state belongs to a rank, so it
is restored on the same layout and drawn anew, from the seed and the step, on another.
"""

import dataclasses
import shutil
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.api import CheckpointException

from converters import checkpoint as folders
from converters.stores import torch_dist
from swift_mega.base.console import say
from swift_mega.base.errors import UserError
from swift_mega.base.reading import read_errors_are_the_users
from swift_mega.base.writing import DiskFull, disk_full, free_bytes, write_errors_are_the_users
from swift_mega.compat import saving
from swift_mega.parallel.agree import on_main
from swift_mega.train.rng import rng_state, set_rng_state

WAY_OUT = "lower checkpoint.keep_last, or choose another `output`; the same command then continues"

OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}

GROUP_OPTIONS = ("max_lr", "min_lr", "betas", "eps")
"""Options that all of Adam's parameter groups share. The scheduler asks them, not itself, for the learning rates."""


@dataclass
class Progress:
    """How far the run has come. Saved with every checkpoint; the data stream needs no more than this."""

    step: int = 0
    """Optimizer steps done."""

    consumed_samples: int = 0
    """Samples read from the training stream."""


def _param_groups(state: Any) -> Iterator[dict[str, Any]]:
    """The parameter groups in the state of an optimizer, or of several that are chained."""
    if isinstance(state, dict):
        yield from state.get("param_groups", ())
    entries = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    for entry in entries:
        yield from _param_groups(entry)


def named_chunks(chunks: list[Any]) -> dict[str, Any]:
    """The bare models under Megatron's names: `model`, or `model0`, `model1` … with virtual stages."""
    modules = unwrap_model(chunks)
    names = ["model"] if len(modules) == 1 else [f"model{index}" for index in range(len(modules))]
    return dict(zip(names, modules, strict=True))


def model_state(chunks: list[Any]) -> dict[str, Any]:
    """The sharded state dict of every chunk."""
    return {name: module.sharded_state_dict() for name, module in named_chunks(chunks).items()}


def load_model(chunks: list[Any], folder: Path) -> None:
    """Fill the chunks with the weights of a Megatron checkpoint of any layout; its optimizer is left alone."""
    on_main(lambda: torch_dist.check_files(folder))
    loaded = read(model_state(chunks), folder)
    for name, module in named_chunks(chunks).items():
        module.load_state_dict(loaded[name])


def read(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """megatron-core's load, after `check_files`; a tensor that is there but unreadable ends it on every rank.

    Raises:
        Damaged: files have their lengths but not their content, as after a power cut.
        UserError: a file that this process may not read.
    """
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(folder))
    except CheckpointException as error:
        if refusal := saving.refusal(error):
            with read_errors_are_the_users(folder):
                raise refusal from None
        if not saving.is_damage(error):
            raise
        raise torch_dist.Damaged(f"{folder} is damaged: not all of its tensors can be read.") from None
    return loaded


class Checkpointer:
    """Writes and reads the checkpoints of one run."""

    def __init__(
        self,
        root: Path,
        *,
        chunks: list[Any],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
        hf_folder: Path,
        run_yaml: str,
        model_arguments: dict[str, Any],
        keep_last: int,
    ) -> None:
        self.root = root
        self.chunks = chunks
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.hf_folder = hf_folder
        self.run_yaml = run_yaml
        self.model_arguments = model_arguments
        self.keep_last = keep_last

    def save(self, progress: Progress) -> Path:
        """Write one checkpoint and return its folder; an older one is removed only after this one is complete."""
        target = self.root / folders.iteration_name(progress.step)
        unfinished = target.with_name(target.name + folders.UNFINISHED)
        on_main(lambda: self._prepare(unfinished))
        self._write(unfinished, progress)
        on_main(lambda: self._finish(unfinished, target, progress))
        return target

    def _write(self, unfinished: Path, progress: Progress) -> None:
        """megatron-core's save. A disk that runs full ends it with a UserError and leaves nothing there."""
        strategy = FullyParallelSaveStrategyWrapper(
            get_default_save_sharded_strategy(), parallel_state.get_data_parallel_group(with_context_parallel=True)
        )
        state = self._state(progress, is_loading=False)
        try:
            dist_checkpointing.save(state, str(unfinished), strategy, content_metadata=OPTIMIZER_FORMAT)
        except saving.FAILURES as error:
            self._fail(unfinished, error)

    def _fail(self, unfinished: Path, error: BaseException) -> NoReturn:
        """End a save that failed with `error`: with a UserError if the disk is full."""

        def explain() -> None:
            if saving.is_disk_full(error):
                self._explain_full(unfinished)

        if saving.told_to_all(error):
            on_main(explain)
            # Not an Exception as torch has it; on rank 0 it holds the reasons of all ranks.
            raise RuntimeError(f"{unfinished} could not be written.") from error
        # This rank alone has it, and the others are not listening: they will notice that it has gone.
        if dist.get_rank() == 0:
            explain()
        raise error

    def _explain_full(self, unfinished: Path) -> NoReturn:
        explanation = disk_full(self.root, needed_bytes(self.chunks), WAY_OUT)
        shutil.rmtree(unfinished, ignore_errors=True)
        raise explanation from None

    def load(self, folder: Path) -> Progress:
        """Restore everything from `folder` and return how far it had come.

        Raises:
            UserError: it is damaged, holds no optimizer state, or is of another model.
        """
        try:
            return self._load(folder)
        except torch_dist.Damaged as error:
            raise UserError(error.what, f"{error.fix} {way_back(folder)}") from None

    def _load(self, folder: Path) -> Progress:
        on_main(lambda: torch_dist.check_files(folder))
        self._check(common := dist_checkpointing.load_common_state_dict(str(folder)), folder)
        state = self._state(Progress(), is_loading=True)
        same_layout = common["rng_shape"] == rng_shape()
        if not same_layout:
            del state["rng_state"]
        loaded = read(state, folder)
        for name, module in named_chunks(self.chunks).items():
            module.load_state_dict(loaded[name])
        self._load_optimizer(loaded["optimizer"])
        self.scheduler.load_state_dict(loaded["opt_param_scheduler"])
        if same_layout:
            set_rng_state(loaded["rng_state"])
        progress = Progress(**loaded["progress"])
        say(f"Resumed from {folder} at step {progress.step}" + ("." if same_layout else ", on another layout."))
        return progress

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Moments and step count; the options that megatron saves in the groups are this start's to say.

        They are changed before the load: megatron-core 0.19 finds a group again by some of them.
        """
        own = self.optimizer.param_groups[0]
        for group in _param_groups(state):
            group.update({name: own[name] for name in GROUP_OPTIONS if name in group})
        self.optimizer.load_state_dict(state)

    def _state(self, progress: Progress, *, is_loading: bool) -> dict[str, Any]:
        model = model_state(self.chunks)
        return {
            "checkpoint_version": 3.0,
            "args": Namespace(**self.model_arguments),
            "iteration": progress.step,
            "progress": dataclasses.asdict(progress),
            "rng_shape": rng_shape(),
            "expert_model_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
            "opt_param_scheduler": self.scheduler.state_dict(),
            "optimizer": self.optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=OPTIMIZER_FORMAT),
            "rng_state": ShardedObject("rng_state", rng_state(), rng_shape(), rng_position()),
            **model,
        }

    def _prepare(self, unfinished: Path) -> None:
        """Clear away what earlier saves left when they were killed, and see that there is room for this one."""
        with write_errors_are_the_users(self.root, option="`output`"):
            for left in self.root.glob(f"*{folders.UNFINISHED}"):
                shutil.rmtree(left)
            self.check_space()
            unfinished.mkdir(parents=True)

    def check_space(self) -> None:
        """Raise a UserError where the disk has no room for one more checkpoint."""
        needed = needed_bytes(self.chunks)
        if free_bytes(self.root) < needed:
            raise disk_full(self.root, needed, WAY_OUT)

    def _finish(self, unfinished: Path, target: Path, progress: Progress) -> None:
        try:
            with write_errors_are_the_users(self.root, option="`output`"):
                folders.copy_hf_files(self.hf_folder, unfinished / "hf")
                (unfinished / "run.yaml").write_text(self.run_yaml, encoding="utf-8")
        except DiskFull:
            self._explain_full(unfinished)
        with write_errors_are_the_users(self.root, option="`output`"):
            if target.exists():
                folders.remove(target)
            unfinished.rename(target)
            folders.write_tracker(self.root, progress.step)
            for old in folders.outdated(folders.iterations(self.root), target, self.keep_last):
                folders.remove(old)

    def _check(self, common: dict[str, Any], folder: Path) -> None:
        saved = vars(common["args"]) if "args" in common else {}
        if "progress" not in common:
            raise UserError(
                f"{folder} holds weights but no optimizer state, so there is nothing to resume.",
                f"Start a new run from it: model.path={folder.parent}",
            )
        before, now = common.get("expert_model_parallel_size", 1), parallel_state.get_expert_model_parallel_world_size()
        if before != now:
            raise UserError(
                f"{folder} was saved with parallel.expert_model_parallel_size {before}, this start has {now}; the "
                "optimizer's state of experts cannot be taken over by another number of ranks.",
                f"Resume with {before}, or start a new run from the weights: model.path={folder.parent}",
            )
        differences = [
            f"{name}: {saved.get(name)!r} there, {value!r} here"
            for name, value in self.model_arguments.items()
            if saved.get(name) != value
        ]
        if differences:
            raise UserError(
                f"{folder} is a checkpoint of another model ({'; '.join(differences[:4])}).",
                "Choose the model it was made from, or another output folder.",
            )


def needed_bytes(chunks: list[Any]) -> int:
    """About the size of a checkpoint: the weights and, in fp32, a master copy and two moments.

    Reckoned from this rank's share, as if those of all others were as large.
    """
    tensor, experts = (
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_expert_tensor_and_model_parallel_world_size(),
    )
    shares: Iterator[int] = (
        param.numel() * (param.element_size() + 12) * (tensor if getattr(param, "allreduce", True) else experts)
        for chunk in chunks
        for param in chunk.parameters()
    )
    stages: int = parallel_state.get_pipeline_model_parallel_world_size()
    return sum(shares) * stages


def way_back(folder: Path) -> str:
    """What to do when the checkpoint `folder` is lost."""
    before = [other for other in folders.iterations(folder.parent) if other.name < folder.name]
    return f"Or go back to the one before it: --resume {before[-1]}" if before else "No earlier one is there."


def rng_shape() -> tuple[int, int, int]:
    """(PP, TP, DP): the grid of ranks that each have a random state."""
    return (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(),
    )


def rng_position() -> tuple[int, int, int]:
    """This rank's place in `rng_shape()`."""
    return (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
    )
