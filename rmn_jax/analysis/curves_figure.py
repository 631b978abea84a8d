"""The curves of one or several runs in one figure."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from rmn_jax.analysis.curves import Curves


def draw(runs: Sequence[Curves]) -> Figure:
    """Draws loss, accuracy and rate of all runs; loads, dead units and churn where a run is routed.

    A colour is a run. Thick is held out, thin is training. A dotted vertical line is the beginning of phase 4.
    """
    routed = any(run.routed for run in runs)
    rows = 2 if routed else 1
    colours = [matplotlib.colormaps["tab10"](index % 10) for index in range(len(runs))]
    below = 0.15 + 0.21 * len(runs)  # inches for the legend
    height = 3.0 * rows + below
    layout = ConstrainedLayoutEngine(rect=(0.005, below / height, 0.985, 1 - below / height))
    figure = Figure(figsize=(12.6, height), dpi=120, layout=layout)
    panels: list[tuple[str, Callable[..., None]]] = [("loss", _loss), ("top-1", _accuracy), ("learning rate", _rate)]
    if routed:
        panels += [
            ("share of inputs: least, median, most of the units", _load),
            ("dead units", _dead),
            ("churn of held-out images (thin: each stage)", _churn),
        ]
    for axis, (title, plot) in zip(np.ravel(figure.subplots(rows, 3)), panels, strict=True):
        for run, colour in zip(runs, colours, strict=True):
            plot(axis, run, colour)
        _finish(axis, title, runs, colours)
    _legend(figure, runs, colours, below / height)
    return figure


def _finish(axis: Axes, title: str, runs: Sequence[Curves], colours: Sequence[Any]) -> None:
    """What all panels have: title, grid, the same epochs, the beginnings of phase 4."""
    axis.set_title(title, fontsize=10)
    if not axis.lines:
        axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", color="0.5", fontsize=9)
        axis.set_yticks([])
    elif axis.get_yscale() == "linear":
        axis.set_ylim(bottom=-0.02 * axis.get_ylim()[1])  # a line at 0 is seen
    first, last = min(run.epoch[0] for run in runs), max(run.epoch[-1] for run in runs)
    margin = max(0.5, 0.02 * (last - first))
    axis.set_xlim(first - margin, last + margin)
    for run, colour in zip(runs, colours, strict=True):
        if run.phase4 and run.epoch[0] <= run.phase4 < run.epoch[-1]:
            axis.axvline(run.phase4 + 0.5, color=colour, linewidth=0.9, linestyle=":", alpha=0.8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("epoch", fontsize=8)


def _legend(figure: Figure, runs: Sequence[Curves], colours: Sequence[Any], top: float) -> None:
    """The runs on the left, a line each; what the kinds of lines mean on the right."""
    entries = []
    for run, colour in zip(runs, colours, strict=True):
        score = "" if np.isnan(run.last("eval_top1")) else f", {run.last('eval_top1'):.2%}"
        entries.append(Line2D([], [], color=colour, linewidth=2, label=f"{run.name}: {run.network}{score}"))
    figure.legend(handles=entries, loc="upper left", bbox_to_anchor=(0.03, top), fontsize=9, frameon=False)
    kinds = [
        Line2D([], [], color="0.3", linewidth=1.8, label="held out"),
        Line2D([], [], color="0.3", linewidth=0.9, alpha=0.7, label="training"),
    ]
    if any(run.phase4 for run in runs):
        kinds.append(Line2D([], [], color="0.3", linewidth=0.8, linestyle=":", label="phase 4 begins"))
    figure.legend(
        handles=kinds, loc="upper right", bbox_to_anchor=(0.99, top), fontsize=9, frameon=False, ncols=len(kinds)
    )


def _line(axis: Axes, run: Curves, values: np.ndarray, colour: Any, **style: Any) -> None:
    """One curve without its gaps: an evaluation every few epochs is still one line. A single point is a dot."""
    known = np.isfinite(values)
    style = {"linewidth": 1.8, "marker": "o" if known.sum() == 1 else "", "markersize": 4} | style
    axis.plot(run.epoch[known], values[known], color=colour, **style)


_TRAINING = {"linewidth": 0.9, "alpha": 0.7}


def _loss(axis: Axes, run: Curves, colour: Any) -> None:
    _line(axis, run, run.series("train_loss"), colour, **_TRAINING)
    _line(axis, run, run.series("eval_loss"), colour)
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.lines])
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _accuracy(axis: Axes, run: Curves, colour: Any) -> None:
    _line(axis, run, run.series("train_top1"), colour, **_TRAINING)
    _line(axis, run, run.series("eval_top1"), colour)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _rate(axis: Axes, run: Curves, colour: Any) -> None:
    """Earlier runs have wider lines, so that equal schedules are all seen."""
    _line(axis, run, run.series("learning_rate"), colour, linewidth=max(1.2, 2.8 - 0.8 * len(axis.lines)))


def _load(axis: Axes, run: Curves, colour: Any) -> None:
    """The shares of the units of all stages: a band from the least to the most, and the median."""

    def over_units(of: Callable) -> np.ndarray:
        return np.array([of(share) if share.size else np.nan for share in run.shares])

    if not run.routed:
        return
    least, middle, most = over_units(np.min), over_units(np.median), over_units(np.max)
    known = np.isfinite(middle)
    axis.fill_between(run.epoch[known], least[known], most[known], color=colour, alpha=0.18, linewidth=0)
    _line(axis, run, middle, colour)
    for edge in (least, most):
        _line(axis, run, edge, colour, linewidth=0.7)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _dead(axis: Axes, run: Curves, colour: Any) -> None:
    if run.routed:
        _line(axis, run, np.array([dead.sum() if dead.size else np.nan for dead in run.by_stage("dead_units")]), colour)
        axis.set_ylim(top=max(1.0, *(1.05 * np.max(line.get_ydata(), initial=0) for line in axis.lines)))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _churn(axis: Axes, run: Curves, colour: Any) -> None:
    """The mean over stages, and each stage as a thin line."""
    found = run.by_stage("churn")
    stages = max(map(len, found))
    if not stages:
        return
    rows = np.array([row if len(row) == stages else np.full(stages, np.nan) for row in found])
    if stages > 1:
        for stage in range(stages):
            _line(axis, run, rows[:, stage], colour, **_TRAINING)
    _line(axis, run, rows.mean(axis=1), colour)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
