"""From a configuration to a finished run: the parts are put together here and nowhere else.

    configuration → process groups → model with weights → optimizer → resume → data → loop

Read it top-down; each helper is one arrow.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.transformer import MegatronModule

from converters import checkpoint as folders
from converters.config_table import MegatronArguments
from converters.family import family_of
from swift_mega.base import config as configs
from swift_mega.base.console import say
from swift_mega.base.errors import PeerLost
from swift_mega.base.flops import peak_flops
from swift_mega.base.hub import resolve_model
from swift_mega.base.metrics import MetricsWriter
from swift_mega.compat.device import device_name
from swift_mega.compat.peers import is_lost_peer
from swift_mega.data.loader import Loader, loader
from swift_mega.data.stream import Stream, Streams, build_streams
from swift_mega.data.tokenizer import TokenizerInfo
from swift_mega.methods.check import check_model, microbatches
from swift_mega.methods.config import PretrainConfig
from swift_mega.methods.output import Outcome, checkpoints, claim_output, exports, opened_output, resume_folder
from swift_mega.model.build import build_model, precision_of
from swift_mega.model.flops import flops_per_token
from swift_mega.model.mtp import check_mtp
from swift_mega.model.weights import load_hf
from swift_mega.parallel.agree import on_main
from swift_mega.parallel.groups import initialize, shutdown
from swift_mega.train.callbacks import Evaluate, Report, Save, StopOnNonFinite, StopOnSignal, Test
from swift_mega.train.checkpoint import Checkpointer, Progress, load_model
from swift_mega.train.export import Exporter
from swift_mega.train.loop import Callback, Trainer, fit
from swift_mega.train.optimizer import build_optimizer, build_scheduler, wrap_data_parallel
from swift_mega.train.step import Method, Stepper


def run(config: PretrainConfig, method: Method, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train as `config` says; a mistake of the user's ends every rank with the same UserError.

    Args:
        callbacks: called after the run's own. A default process group that exists already is kept.
    """
    joined_before = dist.is_initialized()
    initialize(config.parallel, config.train.seed)
    try:
        source = on_main(lambda: _source(config, dist.get_world_size()))
        with ExitStack() as output:
            on_main(lambda: output.enter_context(opened_output(config)))
            return _run(config, source, method, callbacks)
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise PeerLost(
            f"Rank {dist.get_rank()} has lost another rank in the middle of its work "
            f"({str(error).strip().splitlines()[0]}). What torchrun reports below tells which, and how it ended."
        ) from error
    finally:
        shutdown(keep_world=joined_before)


def _run(config: PretrainConfig, source: Path, method: Method, callbacks: Sequence[Callback]) -> Outcome:
    resume = on_main(lambda: _resume(config))
    hf_folder = folders.hf_folder(source)
    hf_config = folders.read_config(source)
    family = family_of(hf_config)
    arguments = family.megatron_arguments(hf_config)

    chunks = build_model(hf_config, config.model, config.parallel, config.train, config.data.sequence_length)
    if resume is None and config.model.weights == "pretrained":
        _load_weights(chunks, source)
    chunks = wrap_data_parallel(chunks, config.parallel)
    optimizer = build_optimizer(chunks, config.optimizer, config.parallel)
    scheduler = build_scheduler(optimizer, config.optimizer, config.train.steps)
    checkpointer = Checkpointer(
        checkpoints(config),
        chunks=chunks,
        optimizer=optimizer,
        scheduler=scheduler,
        hf_folder=hf_folder,
        run_yaml=configs.dump(config),
        model_arguments=asdict(arguments),
        keep_last=config.checkpoint.keep_last,
    )
    progress = checkpointer.load(resume) if resume else Progress()

    streams = _streams(config, progress, arguments, hf_folder)
    batches = _loader(config, streams.train, progress.consumed_samples)
    trainer = Trainer(
        chunks=chunks,
        optimizer=optimizer,
        scheduler=scheduler,
        stepper=_stepper(config, method, chunks),
        batches=batches,
        global_batch_size=config.train.global_batch_size,
        last_step=_last_step(config, progress),
        progress=progress,
    )
    with StopOnSignal() as stop:
        on_main(checkpointer.check_space)
        if changes := on_main(lambda: claim_output(config)):
            say(f"Changed since the start before: {', '.join(changes)}")
        metrics = _metrics(config, progress)
        flops = flops_per_token(family, arguments, config.data.sequence_length)
        own = _callbacks(config, checkpointer, metrics, streams, batches, flops)
        fit(trainer, [StopOnNonFinite(), stop, *own, *callbacks])
    metrics.close()
    return Outcome(progress.step, trainer.stop_reason, folders.latest(checkpoints(config)))


def _source(config: PretrainConfig, world_size: int) -> Path:
    """On rank 0: where the model is. One of a hub is known only now; other models have been checked before."""
    source = resolve_model(config.model.path, revision=config.model.revision)
    hf_config = folders.read_config(source)
    check_model(config, family_of(hf_config).megatron_arguments(hf_config), world_size)
    check_mtp(config.model, hf_config, source)
    return source


def _resume(config: PretrainConfig) -> Path | None:
    """On rank 0: the checkpoint to continue from."""
    folder, asked = resume_folder(config), config.checkpoint.resume
    if folder and asked != "auto" and not folder.resolve().is_relative_to(Path(asked).resolve()):
        say(f"{config.output} has checkpoints of its own: it continues from {folder.name}, not from {asked}.")
    return folder


def _load_weights(chunks: list[MegatronModule], source: Path) -> None:
    if folders.is_megatron(source):
        load_model(chunks, folders.latest(source))
    else:
        load_hf(chunks, source, without_mtp=True)  # `_source` has asked whether that may be


def _stepper(config: PretrainConfig, method: Method, chunks: list[DistributedDataParallel]) -> Stepper:
    return Stepper(
        chunks,
        method,
        micro_batch_size=config.train.micro_batch_size,
        sequence_length=config.data.sequence_length,
        num_microbatches=microbatches(config, dist.get_world_size()),
    )


def _last_step(config: PretrainConfig, progress: Progress) -> int:
    if config.train.stop_after_steps is None:
        return config.train.steps
    return min(config.train.steps, progress.step + config.train.stop_after_steps)


def _streams(config: PretrainConfig, progress: Progress, arguments: MegatronArguments, hf_folder: Path) -> Streams:
    batch_size = config.train.global_batch_size
    tokenizer = on_main(lambda: _tokenizer(config, hf_folder))
    return build_streams(
        config.data,
        seed=config.train.seed,
        total_train_samples=progress.consumed_samples + (config.train.steps - progress.step) * batch_size,
        eval_samples=config.train.eval_batches * batch_size,
        vocab_size=arguments.vocab_size,
        eod=tokenizer.eod if tokenizer else None,
        tokenizer=tokenizer,
        consumed_samples=progress.consumed_samples,
        cache_dir=config.data.cache_dir or Path(config.output) / "cache",
    )


def _tokenizer(config: PretrainConfig, hf_folder: Path) -> TokenizerInfo | None:
    """The model's tokenizer, to compare with the one the data was built with; None for a model without one."""
    name = config.model.tokenizer
    if name is None and not any(hf_folder.glob("tokenizer*")):
        return None
    return TokenizerInfo.of(name or hf_folder, trust_remote_code=config.model.trust_remote_code)


def _loader(config: PretrainConfig, stream: Stream, consumed_samples: int = 0) -> Loader:
    return loader(
        stream,
        consumed_samples=consumed_samples,
        micro_batch_size=config.train.micro_batch_size,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        num_workers=config.data.num_workers,
    )


def _metrics(config: PretrainConfig, progress: Progress) -> MetricsWriter:
    parallel = config.parallel
    sizes = (
        f"TP{parallel.tensor_model_parallel_size}",
        f"PP{parallel.pipeline_model_parallel_size}",
        f"DP{parallel_state.get_data_parallel_world_size()}",
    )
    name = "×".join(size for size in sizes if not size.endswith("P1")) or "1 process"
    return MetricsWriter(
        Path(config.output),
        resumed_step=progress.step,
        layout=name + ("+SP" if parallel.sequence_parallel else ""),
        tensorboard=config.log.tensorboard,
        wandb_project=config.log.wandb_project,
    )


def _callbacks(
    config: PretrainConfig,
    checkpointer: Checkpointer,
    metrics: MetricsWriter,
    streams: Streams,
    batches: Loader,
    flops: float,
) -> list[Callback]:
    """In the order they are called: a step is evaluated before it is plotted and saved."""
    tokens_per_step = config.train.global_batch_size * config.data.sequence_length
    report = Report(
        metrics,
        Path(config.output),
        interval_steps=config.log.interval_steps,
        tokens_per_step=tokens_per_step,
        flops_per_step=flops * tokens_per_step,
        peak_flops=peak_flops(device_name(), str(precision_of(config.model.precision))),
        data_wait_s=lambda: batches.wait_s,
    )
    callbacks: list[Callback] = []
    count, interval_steps = config.train.eval_batches, config.train.eval_interval_steps
    if streams.valid:
        fresh = partial(_loader, config, streams.valid)
        callbacks.append(Evaluate(fresh, count, metrics, interval_steps=interval_steps))
    if streams.test:
        callbacks.append(Test(partial(_loader, config, streams.test), count, metrics, config.train.steps))
    exporter = _exporter(config, checkpointer) if config.checkpoint.export_hf else None
    return [*callbacks, report, Save(checkpointer, config.checkpoint.save_interval_steps, exporter)]


def _exporter(config: PretrainConfig, checkpointer: Checkpointer) -> Exporter:
    return Exporter(
        exports(config),
        chunks=checkpointer.chunks,
        hf_folder=checkpointer.hf_folder,
        keep_last=config.checkpoint.keep_last,
    )
