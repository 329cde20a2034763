"""What happens around the steps of any Trainer: reports, requests to stop, NaN, evaluations, checkpoints that stay."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.data_loader import SeedableRandomSampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_bridge.methods import output
from hf_bridge.methods.config import TuneConfig
from swift_mega.base.console import counted, is_main, progress, say
from swift_mega.base.errors import UserError
from swift_mega.base.metrics import MetricsWriter, plot, status_line
from swift_mega.compat.device import peak_memory_bytes
from swift_mega.parallel.stopping import StopRequests

WARMUP_STEPS = 2
"""Steps of a start left out of its average speed: they allocate, compile and open connections."""

NAMES = {"learning_rate": "lr"}
"""transformers' names of numbers → ours."""

NOT_SHOWN = ("epoch", "num_tokens", "total_flos", "num_input_tokens_seen")
EVAL_SPEED = ("runtime", "samples_per_second", "steps_per_second", "num_tokens")


class Reason:
    """Why the run ended early; empty: it did not."""

    text: str = ""


class Report(TrainerCallback):  # type: ignore[misc]
    """The progress bar, metrics.jsonl and loss.png.

    Args:
        examples: sequences in an epoch.
    """

    def __init__(self, metrics: MetricsWriter, folder: Path, reason: Reason, examples: int) -> None:
        self.metrics, self.folder, self.reason, self.examples = metrics, folder, reason, examples
        self.open = ExitStack()
        self.tokens = self.warm_tokens = self.first_step = self.shown_step = 0
        self.busy_s = self.warm_s = 0.0
        self.mark = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.first_step = self.shown_step = state.global_step
        self.tokens = state.num_input_tokens_seen
        self.bar = self.open.enter_context(progress(state.max_steps, "train", "step", initial=state.global_step))
        self.mark = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.perf_counter()
        self.busy_s += now - self.mark
        self.mark = now
        if control.should_save or control.should_training_stop:
            control.should_log = True  # nothing is saved that was not looked at

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._report(state, logs)
        held_out = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        held_out = {n: value for n, value in held_out.items() if value is not None and not n.endswith(EVAL_SPEED)}
        if held_out:
            self.metrics.write(state.global_step, {f"eval/{name}": float(held_out[name]) for name in held_out})
            say(f"step {state.global_step}: " + ", ".join(f"{n} {v:.4f}" for n, v in held_out.items()))

    def _report(self, state: TrainerState, logs: dict[str, Any]) -> None:
        # TRL gives None for the mean of a reward that could judge no answer of the step.
        known = {name: value for name, value in logs.items() if name not in NOT_SHOWN and value is not None}
        values = {NAMES.get(name, name): float(value) for name, value in known.items()}
        if (tokens := int(logs.get("num_tokens", 0))) and self.busy_s:
            values["tokens_per_s"] = (tokens - self.tokens) / self.busy_s
            if self.shown_step - self.first_step >= WARMUP_STEPS:
                self.warm_tokens += tokens - self.tokens
                self.warm_s += self.busy_s
            self.tokens = tokens
        values["peak_memory_gb"] = peak_memory_bytes() / 1e9
        values["consumed_samples"] = round(float(state.epoch or 0) * self.examples)
        self.metrics.write(state.global_step, values)
        self.bar.set_status(status_line(values))
        self.bar.update(state.global_step - self.shown_step)
        self.shown_step, self.busy_s = state.global_step, 0.0

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.mark = time.perf_counter()  # what evaluations and saves take counts for no training speed

    def on_save(self, *_: Any, **__: Any) -> None:
        self.mark = time.perf_counter()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.close()
        plot(self.folder)
        if self.warm_s:
            say(f"{self.warm_tokens / self.warm_s:,.0f} tokens/s (the first {WARMUP_STEPS} steps left out)")
        if self.reason.text:
            say(f"Stopped at step {state.global_step}: {self.reason.text}. The same command continues.")

    def close(self) -> None:
        """Leave the bar as it is."""
        self.open.close()


class StopOnNonFinite(TrainerCallback):  # type: ignore[misc]
    """Ends the run when loss or gradient norm is NaN or infinite, before the step can be saved."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite((logs or {}).get(name, 0.0)):
                raise UserError(
                    f"`{name}` is {(logs or {})[name]} at step {state.global_step}. Nothing was saved after it.",
                    "Lower train.learning_rate, raise train.warmup_ratio, or look at the data of this step, then "
                    "start again: the newest checkpoint is from before it.",
                )


class StopOnSignal(StopRequests, TrainerCallback):  # type: ignore[misc]
    """Saves and ends the run after the current step on SIGTERM or SIGINT on any rank."""

    def __init__(self, reason: Reason) -> None:
        super().__init__()
        self.reason = reason

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if why := self.asked():
            end(control, self.reason, why)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.finish()


class StopAfter(TrainerCallback):  # type: ignore[misc]
    """Saves and ends a start after so many steps."""

    def __init__(self, steps: int, reason: Reason) -> None:
        self.steps, self.reason, self.first_step = steps, reason, 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.first_step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step - self.first_step >= self.steps and state.global_step < state.max_steps:
            end(control, self.reason, f"{counted(self.steps, 'step')} of this start are done")


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Saves and ends the run after so many evaluations without a better held-out loss; a resumed run counts on."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        since = since_best(state.log_history)
        if since >= self.patience:
            control.should_save = control.should_training_stop = True
            say(
                f"step {state.global_step}: no better held-out loss in {counted(since, 'evaluation')}: this is the end."
            )
            if not args.load_best_model_at_end:
                say("What is saved are the weights of this step; with `--load-best` it is those of the best.")


def since_best(history: Sequence[Mapping[str, Any]]) -> int:
    """Evaluations after the one with the lowest held-out loss, by transformers' `log_history`."""
    losses = [line["eval_loss"] for line in history if "eval_loss" in line]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


class EvaluateAtEnd(TrainerCallback):  # type: ignore[misc]
    """An evaluation after the last step, whatever the interval."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


class KeepCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Says that a checkpoint is complete once every rank has written its part; only then may older ones go."""

    def __init__(self, config: TuneConfig, examples_per_step: int) -> None:
        self.config, self.examples_per_step = config, examples_per_step

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        PartialState().wait_for_everyone()
        folder = output.checkpoints(self.config) / f"{output.PREFIX}{state.global_step}"
        if is_main():
            output.seal(folder, self.examples_per_step)
            output.rotate(self.config, state.best_model_checkpoint)
        say(f"step {state.global_step}: saved {folder}")


class OwnOrder(TrainerCallback):  # type: ignore[misc]
    """Each epoch has its order of rows, also one that is resumed in its middle.

    transformers tells the sampler its epoch through loaders and batch samplers that may not pass it on (accelerate's
    BatchSamplerShard behind a SkipBatchSampler does not).
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        holder = train_dataloader
        while holder is not None:
            if isinstance(holder, SeedableRandomSampler):
                holder.set_epoch(int(state.epoch or 0))
            holder = _inner(holder)


def _inner(holder: Any) -> Any:
    """The sampler inside a loader or a sampler."""
    names = ("batch_sampler", "sampler")
    return next((found for name in names if (found := vars(holder).get(name)) is not None), None)


def end(control: TrainerControl, reason: Reason, why: str) -> None:
    """Save after this step, and stop."""
    control.should_save = control.should_training_stop = True
    reason.text = why
