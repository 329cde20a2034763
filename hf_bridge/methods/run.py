"""From a configuration to a tuned model: the parts are put together here and nowhere else.

    configuration → rows → examples → model → tuners → Trainer → output folder

Read it top-down; each helper is one arrow. What differs between methods is a `Method`.
"""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate import PartialState
from accelerate.state import AcceleratorState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from hf_bridge.data.rows import load_rows
from hf_bridge.methods import output
from hf_bridge.methods.arguments import check_names, training_arguments
from hf_bridge.methods.callbacks import (
    EarlyStopping,
    EvaluateAtEnd,
    KeepCheckpoints,
    OwnOrder,
    Reason,
    Report,
    StopAfter,
    StopOnNonFinite,
    StopOnSignal,
    since_best,
)
from hf_bridge.methods.config import TrainingConfig, TuneConfig
from hf_bridge.methods.method import Method, Setup
from hf_bridge.methods.output import Outcome
from hf_bridge.models.load import load_model, read_raw_config
from hf_bridge.models.quantisation import check_trains
from hf_bridge.models.recognise import recognise
from hf_bridge.parallel.presets import check as check_parallel
from hf_bridge.parallel.presets import ready
from hf_bridge.templates.encoding import Encoder, encoder
from hf_bridge.tuners.chosen import in_cache, tuners_of
from hf_bridge.tuners.tuned import TunedModel, prepare_model
from swift_mega.base.console import counted, is_main, say
from swift_mega.base.errors import UserError
from swift_mega.base.hub import resolve_model
from swift_mega.base.metrics import MetricsWriter
from swift_mega.compat import accelerate_cpu
from swift_mega.data.tokenizer import load_tokenizer
from swift_mega.parallel.agree import on_main


def run(config: TuneConfig, method: Method, callbacks: Sequence[Any] = ()) -> Outcome:
    """Tune as `config` says; a mistake of the user's ends every process with the same UserError.

    Args:
        callbacks: transformers' TrainerCallbacks, called after the run's own. A default process group that exists
            already is kept.
    """
    joined_before = dist.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=True)
    if not torch.cuda.is_available():
        # Or it would be `cpu:0` in a job of several processes, where torch does not load an optimizer to.
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
    PartialState(cpu=not torch.cuda.is_available())  # joins the job, if there is one
    try:
        config = resolved(config, method)
        _check_parallel(config, method)
        on_main(lambda: output.run_folder(config, method.name).check())
        setup, data = prepared(config, method)
        with ExitStack() as folder:
            owner = output.run_folder(config, method.name, data)
            on_main(lambda: folder.enter_context(owner.opened()))
            return _run(setup, method, data, owner, callbacks)
    finally:
        accelerate_cpu.leave()
        if dist.is_initialized() and not joined_before:
            dist.destroy_process_group()


def resolved(config: TuneConfig, method: Method) -> TuneConfig:
    """The configuration with what the method says where it is silent.

    Raises:
        UserError: options that exclude each other.
    """
    check_names(config)
    if config.loading.quantization is not None:
        check_trains(config.loading.quantization)
    if config.loading.qat is not None and config.tuner != "full":
        raise UserError(
            f"`loading.qat` trains the model's own weights, and the tuner is `{config.tuner}`.", "Give `--tuner full`."
        )
    length = replace(config.length, long_rows=config.length.long_rows or method.long_rows)
    text = replace(config.text, template=config.text.template or method.template)
    loading = replace(config.loading, num_labels=config.loading.num_labels or method.num_labels)
    return replace(config, length=length, text=text, loading=loading, train=_checkpointing(config))


def _checkpointing(config: TuneConfig) -> TrainingConfig:
    """`train` without gradient checkpointing where it would turn a tuner off."""
    if not config.train.gradient_checkpointing or (name := in_cache(config.tuner)) is None:
        return config.train
    say(f"Without gradient checkpointing: it turns off the cache of keys and values, in which `{name}` lies.")
    return replace(config.train, gradient_checkpointing=False)


def prepared(config: TuneConfig, method: Method) -> tuple[Setup, dict[str, Any]]:
    """The setup without a model, and the data by the option that names it: `dataset`, and `val_dataset` or none."""
    rows = on_main(lambda: load_rows(config.data, answers=method.answers))
    on_main(lambda: method.check(config, rows.train))
    folder = on_main(lambda: resolve_model(config.model, config.loading.revision, weights=False))
    tokenizer = load_tokenizer(str(folder), trust_remote_code=config.loading.trust_remote_code)
    template = on_main(lambda: _template(config, folder, tokenizer))
    config = replace(config, text=replace(config.text, template=template))
    setup = Setup(config, tokenizer, encoder_of(config, tokenizer))
    parts = {"dataset": rows.train, "val_dataset": rows.valid}
    found = {name: part for name, part in parts.items() if part is not None}
    # The main process first, so that it alone reports; the others find what it has made.
    data = {name: _main_first(lambda part=part: method.dataset(setup, part)) for name, part in found.items()}
    return setup, data


def _template(config: TuneConfig, folder: Path, tokenizer: Any) -> str | None:
    """The declared template; None: the tokenizer's own."""
    return recognise(config.model, read_raw_config(folder), tokenizer).template(config.text.template)


def encoder_of(config: TuneConfig, tokenizer: Any) -> Encoder:
    """The template of the run on a tokenizer."""
    text = config.text
    return encoder(tokenizer, text.template, text.loss_scale, text.agent_format, text.allow_special)


def _main_first(work: Any) -> Any:
    """What `work` returns, on every process, once it has succeeded on the first."""
    if not is_main():
        on_main(lambda: None)
        return work()
    made: list[Any] = []
    on_main(lambda: made.append(work()))
    return made[0]


def _run(setup: Setup, method: Method, data: dict[str, Any], owner: Any, callbacks: Sequence[Any]) -> Outcome:
    config, train, valid = setup.config, data["dataset"], data.get("val_dataset")
    resume = on_main(lambda: _resume(config, train))
    last = total_steps(config, len(train) * method.visits(config), _world_size())
    if resume and (why := on_main(lambda: _finished(config, resume, last))):
        say(f"{config.output} is finished: {why}")
        return Outcome(output.step_of(resume), "", output.model_folder(config))
    arguments = training_arguments(config, last, held_out=valid is not None, resumed=resume is not None)
    transformers.set_seed(config.train.seed)
    # ZeRO-3 shards weights while they are loaded, and looks here for how.
    options = transformers.TrainingArguments(**arguments)
    model = load_model(config.model, config.loading, method.task)
    own_weights = {id(parameter) for parameter in model.model.parameters()}
    tuned = prepare_model(model.model, tuners_of(config.tuner, config.tuning))
    _check_shardable(tuned, config, own_weights)
    _train_in_float32(tuned, config)
    trainable = tuned.trainable
    if not trainable.count:
        raise UserError(
            f"`--tuner {config.tuner}` trains nothing by itself.", f"Join another to it, such as `lora+{config.tuner}`."
        )
    say(f"{trainable.count:,} parameters are trained, {trainable.share:.2%} of the model.")
    reason = Reason()
    with StopOnSignal(reason) as stop:
        if changes := on_main(owner.claim):
            say(f"Changed since the start before: {', '.join(changes)}")
        metrics = _metrics(config, resume)
        report = Report(metrics, Path(config.output), reason, len(train))
        own = [OwnOrder(), StopOnNonFinite(), report, stop, *_callbacks(config, reason, valid), *tuned.callbacks()]
        setup = replace(
            setup,
            model=tuned.model,
            tokenizer=model.tokenizer,
            arguments=arguments,
            callbacks=(*own, *callbacks),
            optimizer=_optimizer(tuned, options, config),
        )
        trainer = method.trainer(setup, train, valid)
        trainer.tuned = tuned
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        finally:
            report.close()
            metrics.close()
        step = trainer.state.global_step
        if reason.text:
            return Outcome(step, reason.text, output.saved(config)[-1])
        return Outcome(step, "", _save(trainer, tuned, config, own_weights))


def _train_in_float32(tuned: TunedModel, config: TuneConfig) -> None:
    """What is trained, unless the run names a type: in bfloat16 most steps of a small rate would round to nothing."""
    for parameter in tuned.model.parameters() if config.loading.dtype == "auto" else ():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()


def _check_parallel(config: TuneConfig, method: Method) -> None:
    parallel = config.parallel
    check_parallel(
        parallel, _world_size(), quantization=config.loading.quantization, device_map=config.loading.device_map
    )
    if parallel.sequence_parallel_size > 1 and not method.shares_sequences:
        raise UserError(
            f"`{method.name}` cannot share sequences among processes (`--sequence-parallel-size`): its loss needs "
            "whole answers in one place.",
            "Take --sequence-parallel-size 1; sft and pretrain can.",
        )
    ready(parallel)


def _check_shardable(tuned: TunedModel, config: TuneConfig, own: set[int]) -> None:
    """DeepSpeed and FSDP2 hold weights in pieces, from which transformers gathers a model or one adapter of PEFT."""
    parallel = config.parallel
    if not (parallel.deepspeed or parallel.fsdp):
        return
    others = [name for name, one in tuned.attached.items() if not hasattr(one, "host")]
    whole = all(id(weight) in own for one in tuned.attached.values() for weight in one.parameters().values())
    if not whole and (others or len(tuned.attached) > 1):
        raise UserError(
            f"`--tuner {config.tuner}` cannot be gathered from what DeepSpeed and FSDP2 shard.",
            "With them take `full` or one tuner of PEFT, such as `lora`.",
        )


def _optimizer(
    tuned: TunedModel, options: transformers.TrainingArguments, config: TuneConfig
) -> torch.optim.Optimizer | None:
    """What the tuners ask for: an optimizer of their own, or other rates for some parameters; else None.

    Raises:
        UserError: DeepSpeed or FSDP2 would shard what it was made for.
    """
    rates = options.learning_rate, options.weight_decay
    groups = tuned.parameter_groups(*rates)
    own = tuned.optimizer(groups, options)
    usual = own is None and all(one.parameter_groups(*rates) is None for one in tuned.attached.values())
    if not usual and (config.parallel.deepspeed or config.parallel.fsdp):
        raise UserError(
            f"`--tuner {config.tuner}` brings an optimizer, or rates, of its own for weights that are whole.",
            "Without --deepspeed and --fsdp it can; with them take another tuner, such as `lora`.",
        )
    if own is not None or usual:
        return own
    kind, settings = transformers.Trainer.get_optimizer_cls_and_kwargs(options, tuned.model)
    made: torch.optim.Optimizer = kind(groups, **settings)
    return made


def _resume(config: TuneConfig, train: Any) -> Path | None:
    folder = output.resume_folder(config)
    if folder:
        output.check_batch(folder, examples_per_step(config, _world_size()))
        say(f"Going on from {folder}.")
    return folder


def _finished(config: TuneConfig, checkpoint: Path, last: int) -> str:
    """Why the run is over, and what one can do about it; empty: it is not."""
    step = output.step_of(checkpoint)
    if not output.model_folder(config).is_dir():
        return ""
    if step >= last:
        return f"it has all {counted(last, 'step')}. To go on, train for longer."
    patience = config.train.early_stopping
    state = transformers.TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if patience and since_best(state.log_history) >= patience:
        return f"stopped early at step {step}. To go on, raise or leave out `--early-stopping {patience}`."
    return ""


def examples_per_step(config: TuneConfig, world_size: int) -> int:
    """Of the whole job."""
    batch = config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    return batch * world_size // config.parallel.sequence_parallel_size


def total_steps(config: TuneConfig, examples: int, world_size: int) -> int:
    """Optimizer steps of the whole run, as transformers counts them."""
    if config.train.max_steps > 0:
        return config.train.max_steps
    accumulation = config.train.gradient_accumulation_steps
    batches = math.ceil(examples / (examples_per_step(config, world_size) // accumulation))
    return math.ceil(config.train.num_train_epochs * math.ceil(batches / accumulation))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _metrics(config: TuneConfig, resume: Path | None) -> MetricsWriter:
    world = _world_size()
    return MetricsWriter(
        Path(config.output),
        resumed_step=output.step_of(resume) if resume else 0,
        layout=config.tuner + (f", {world} processes" if world > 1 else ""),
        tensorboard=config.train.tensorboard,
        wandb_project=config.train.wandb_project,
    )


def _callbacks(config: TuneConfig, reason: Reason, valid: Any) -> list[Any]:
    """In the order in which they are called."""
    train = config.train
    found: list[Any] = [KeepCheckpoints(config, examples_per_step(config, _world_size()))]
    if train.stop_after_steps is not None:
        found.append(StopAfter(train.stop_after_steps, reason))
    if valid is not None:
        found.append(EvaluateAtEnd())
    if train.early_stopping:
        found.append(EarlyStopping(train.early_stopping))
    return found


def _save(trainer: Any, tuned: TunedModel, config: TuneConfig, own: set[int]) -> Path:
    """The outcome with its tokenizer: the tuners; or where only the model's own weights were trained, the model."""
    folder = output.model_folder(config)
    trained = {id(parameter) for one in tuned.attached.values() for parameter in one.parameters().values()}
    if trained <= own:
        trainer.tuned = None  # then transformers saves all that the model has
    trainer.save_model(str(folder))
    if is_main():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which run.yaml says better
    say(f"Saved {folder}.")
    return folder
