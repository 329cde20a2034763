"""SWIFT's Table 4 for any model and data: every tuner trained alike, each in a process of its own.

    OUTPUT/bench.json               the configuration of the benchmark
    OUTPUT/<tuner>/result.json      what was measured; metrics.jsonl and loss.png of the run beside it
    OUTPUT/table.md, tuners.png     all of them

A tuner that has a result is not trained again, so that a benchmark that was stopped goes on. Torch-free itself: the
processes that it starts would inherit its memory as the least that they have had.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_bridge.experiments.config import LEARNING_RATE, BenchTunersConfig
from hf_bridge.experiments.contenders import BY_TUNER, CONTENDERS, Contender
from hf_bridge.experiments.measured import Broken, Measured, broken, table
from hf_bridge.methods.check import check
from hf_bridge.methods.config import TuneConfig
from hf_bridge.tuners.config import TuningConfig
from swift_mega.base import config as configs
from swift_mega.base.console import say
from swift_mega.base.errors import UserError, nearest
from swift_mega.base.writing import write_errors_are_the_users

WHICH = "tuners"
"""The one option that may change between two starts."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What came of it.

    Attributes:
        found: by tuner.
        failed: tuners that could not be trained, and why.
    """

    compared: tuple[Contender, ...]
    found: dict[str, Measured]
    failed: dict[str, str]

    @property
    def broken(self) -> list[Broken]:
        """Claims that the figures contradict."""
        return broken(self.found)

    def __str__(self) -> str:
        return table(self.compared, self.found, self.failed)


def bench_tuners(config: BenchTunersConfig) -> Benchmark:
    """Train and measure what has no result yet, and write table and picture.

    Raises:
        UserError: an unknown tuner, nothing to evaluate on, an output folder of another benchmark.
    """
    compared = contenders(config.tuners)
    if not (config.data.val_dataset or config.data.val_share):
        raise UserError("the benchmark has nothing to evaluate on.", "Give `--val-dataset` or `--val-share 0.05`.")
    check(tune_config(config, compared[0], Path(config.output)))
    folder = Path(config.output)
    _claim(folder, config)
    found, failed = {}, {}
    for one in compared:
        outcome = _measured(config, one, folder / one.tuner)
        if isinstance(outcome, Measured):
            found[one.tuner] = outcome
        else:
            failed[one.tuner] = outcome
    result = Benchmark(compared, found, failed)
    (folder / "table.md").write_text(f"{result}\n", encoding="utf-8")
    if found:
        from hf_bridge.experiments.tuner_plot import draw

        draw(compared, found, folder / "tuners.png", title=config.model)
    return result


def contenders(names: Sequence[str]) -> tuple[Contender, ...]:
    """Those of that name, in the order of Table 4; no name: all.

    Raises:
        UserError: a name that is none of them.
    """
    for name in names:
        if name not in BY_TUNER:
            raise UserError(f"`{name}` is not compared here.", nearest(name, BY_TUNER))
    return tuple(one for one in CONTENDERS if not names or one.tuner in names)


def tune_config(config: BenchTunersConfig, one: Contender, output: Path) -> TuneConfig:
    """The run of one tuner."""
    options: Any = one.tuner_options(config)
    rate = LEARNING_RATE if config.train.learning_rate is None else config.train.learning_rate
    return TuneConfig(
        model=config.model,
        output=str(output),
        tuner=one.tuner,
        loading=config.loading,
        data=config.data,
        text=config.text,
        length=config.length,
        tuning=TuningConfig(tuner_options=options),
        train=dataclasses.replace(config.train, learning_rate=rate),
    )


def _claim(folder: Path, config: BenchTunersConfig) -> None:
    """Make the folder this benchmark's.

    Raises:
        UserError: it is another one's, whose figures would stand beside these.
    """
    mine = {name: value for name, value in configs.to_dict(config).items() if name != WHICH}
    file = folder / "bench.json"
    with write_errors_are_the_users(folder, option="`--output`"):
        if file.is_file():
            theirs = json.loads(file.read_text(encoding="utf-8"))
            changed = [name for name in mine if mine[name] != theirs.get(name)]
            if changed:
                raise UserError(
                    f"{folder} holds a benchmark with another `{changed[0]}`.", "Choose another `--output`."
                )
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")


def _measured(config: BenchTunersConfig, one: Contender, folder: Path) -> Measured | str:
    """The result in `folder`, made where there is none; or why there is none."""
    result = folder / "result.json"
    if not result.is_file():
        say(f"━━ {one.title}")
        new = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        job = new / "job.json"
        job.write_text(json.dumps(configs.to_dict(tune_config(config, one, new / "run"))), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "hf_bridge.experiments.measured_run", str(job), str(new / "result.json")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            last = _shown(process.stderr)
        if process.returncode:
            return last or f"the process ended with {process.returncode}"
        for weights in ("checkpoints", "model"):
            shutil.rmtree(new / "run" / weights)  # ten times the model, which nobody asked for
        new.rename(folder)
    return Measured(**json.loads(result.read_text(encoding="utf-8")))


def _shown(lines: Any) -> str:
    """Pass lines on to this process's stderr; the last one that says what was wrong."""
    reason = ""
    for line in lines:
        sys.stderr.write(line)
        if line.strip() and not line.lstrip().startswith("→"):
            reason = line.strip()
    return reason
