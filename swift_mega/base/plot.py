"""`loss.png`: what a run did, on one page; and `rewards.png`, for runs on preferences or rewards.

Above, the training loss of every logged step, thin, and smoothed, bold, with the held-out loss as
points; below, learning rate and gradient norm. A vertical line marks each later start, with the name
of its parallel layout where that has changed. `rewards.png` has a panel for each kind of number that the run has.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREY, INK = "#1f5fa8", "#d9660f", "#9aa1a9", "#23292f"

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}

Lines = list[dict[str, Any]]


def draw(lines: Lines, file: Path, title: str) -> None:
    """Draw the `lines` of a metrics.jsonl as the picture `file`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 6.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        loss, lr, norm = figure.subplots(3, 1, sharex=True, height_ratios=(4, 1, 1))
        _draw_loss(loss, lines)
        _draw_small(lr, lines, "lr", "learning rate")
        lr.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
        _draw_small(norm, lines, "grad_norm", "gradient norm")
        _mark_starts((loss, lr, norm), lines)
        _draw_steps(norm, lines)
        loss.set_title(title, loc="left", fontweight="bold", pad=24)
        figure.savefig(file)


@dataclass(frozen=True)
class Panel:
    """Numbers that are drawn over each other.

    Attributes:
        label: of the axis.
        curves: name in metrics.jsonl → what the legend calls it; with `eval/` before it as points.
    """

    label: str
    curves: dict[str, str]


REWARD_PANELS = (
    Panel("reward", {"rewards/chosen": "chosen answers", "rewards/rejected": "rejected answers", "reward": "answers"}),
    Panel("margin of rewards", {"rewards/margins": "chosen − rejected", "margin": "chosen − rejected"}),
    Panel("share of pairs\nin right order", {"rewards/accuracies": "of pairs", "accuracy": "of pairs"}),
    Panel("log-probability\nof an answer", {"logps/chosen": "chosen answers", "logps/rejected": "rejected answers"}),
    Panel("divergence\nfrom reference", {"kl": "mean"}),
    Panel("length of\nanswers (tokens)", {"completions/mean_length": "mean"}),
)


def draw_rewards(lines: Lines, file: Path, title: str) -> bool:
    """Draw what a run on preferences or rewards did as the picture `file`; False where `lines` have nothing of it."""
    found = [panel for panel in REWARD_PANELS if any(len(_series(lines, name)[0]) for name in panel.curves)]
    if not found:
        return False
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.8 + 1.6 * len(found)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(panels, found, strict=True):
            _draw_panel(axes, lines, panel)
        _mark_starts(tuple(panels), lines)
        _draw_steps(panels[-1], lines)
        panels[0].set_title(title, loc="left", fontweight="bold", pad=24)
        figure.savefig(file)
    return True


def _draw_panel(axes: Axes, lines: Lines, panel: Panel) -> None:
    """Each number thin and smoothed, as the loss is, and as points where it is of held-out data."""
    for colour, (name, label) in zip((BLUE, ORANGE, INK), panel.curves.items(), strict=False):
        steps, values = _series(lines, name)
        if len(values):
            smooth = _smooth(values) if len(values) > 5 else values
            axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            axes.plot(steps, smooth, color=colour, linewidth=1.8, label=label)
        steps, values = _series(lines, f"eval/{name}")
        if len(values):
            axes.plot(steps, values, color=colour, linestyle="", marker="o", markersize=5, label=f"{label}, held out")
    axes.set_ylabel(panel.label)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.legend(frameon=False, loc="best", fontsize=8)


def _draw_steps(axes: Axes, lines: Lines) -> None:
    """The axis of steps, from the first start to the last line."""
    steps = [line["step"] for line in lines] or [0]
    margin = max(1, 0.04 * (max(steps) - min(steps)))
    axes.set_xlim(min(steps) - margin, max(steps) + margin)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_loss(axes: Axes, lines: Lines) -> None:
    steps, values = _series(lines, "loss")
    axes.plot(steps, values, color=BLUE, alpha=0.35, linewidth=1, label="training, each step")
    if len(values) > 5:
        axes.plot(steps, _smooth(values), color=BLUE, linewidth=2.2, label="training, smoothed")
    held_steps, held = _series(lines, "eval/loss")
    if len(held):
        axes.plot(
            held_steps,
            held,
            color=ORANGE,
            linewidth=1.2,
            linestyle=(0, (4, 2)),
            marker="o",
            markersize=6,
            label="held out",
        )
        # Above the first, before which there is no curve, and behind the last, where there is none any more.
        _label(axes, held_steps[0], held[0], (0, 9), va="bottom")
        if len(held) > 1:
            _label(axes, held_steps[-1], held[-1], (8, 0), va="center")
    axes.set_ylabel("loss (nats per token)")
    axes.margins(y=0.12)
    if len(steps) or len(held):
        axes.legend(frameon=False, loc="upper right")


def _label(axes: Axes, step: float, loss: float, offset: tuple[float, float], va: str) -> None:
    axes.annotate(
        f"{loss:.3f}",
        (step, loss),
        xytext=offset,
        textcoords="offset points",
        ha="left",
        va=va,
        color=ORANGE,
        fontweight="bold",
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _draw_small(axes: Axes, lines: Lines, name: str, label: str) -> None:
    steps, values = _series(lines, name)
    axes.plot(steps, values, color=INK, linewidth=1.2 if len(steps) < 500 else 0.6)
    axes.set_ylabel(label.replace(" ", "\n"))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    if name == "grad_norm" and len(values) and values.min() > 0 and values.max() > 30 * np.median(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _mark_starts(panels: tuple[Axes, ...], lines: Lines) -> None:
    """A line at each later start, and the layout's name above the first panel where it is another one."""
    starts = [(line["step"], line["start"]) for line in lines if "start" in line]
    last_step = max((line["step"] for line in lines), default=0)
    before = ""
    for number, (step, layout) in enumerate(starts):
        x = step + 0.5 if number else step
        for axes in panels if number else ():
            axes.axvline(x, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
        if layout != before:
            panels[0].annotate(
                f"resumed as {layout}" if number else layout,
                (x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 6),
                textcoords="offset points",
                ha="right" if x > 0.8 * last_step else "left",
                fontsize=9,
            )
        before = layout


def _series(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one number, without those that were not finite."""
    pairs = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean under a bell a fortieth of the run wide: it does not lag behind as a running mean does."""
    sigma = max(1.5, len(values) / 40)
    offsets = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    bell = np.exp(-0.5 * (offsets / sigma) ** 2)
    total = np.convolve(values, bell)
    weight = np.convolve(np.ones_like(values), bell)
    reach = int(3 * sigma)
    return (total / weight)[reach : reach + len(values)]
