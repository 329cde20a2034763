"""`tuners.png`: held-out loss, memory and speed of tuners, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_bridge.experiments.contenders import Contender
from hf_bridge.experiments.measured import Measured, broken
from swift_mega.base.plot import BLUE, ORANGE, STYLE

PANELS = (
    ("eval_loss", "held-out loss (nats per token)", "{:.3f}"),
    ("memory_gib", "peak memory (GiB)", "{:.2f}"),
    ("samples_per_s", "speed (samples/s)", "{:.2f}"),
)


def draw(compared: Sequence[Contender], found: Mapping[str, Measured], file: Path, title: str) -> None:
    """Bars, those in orange that contradict a claim of the tuner."""
    shown = [one for one in compared if one.tuner in found]
    flagged = {(flag.claim.tuner, flag.claim.quantity) for flag in broken(found)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 1.6 + 0.42 * len(shown)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, label, form) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
            values = [float(getattr(found[one.tuner], name)) for one in shown]
            colours = [ORANGE if (one.tuner, name) in flagged else BLUE for one in shown]
            bars = axes.barh([one.title for one in shown], values, color=colours, height=0.62)
            axes.bar_label(bars, [form.format(value) for value in values], padding=4, fontsize=9)
            axes.set_xlabel(label)
            axes.margins(x=0.2)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        figure.savefig(file)
