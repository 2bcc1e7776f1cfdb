"""Charts drawn by matplotlib: a training's curves and a benchmark's bars, as PNG or SVG by the file's suffix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgmn2cli.errors import printable
from dgmn2cli.plotting import BLUE, GRAY, PALE_BLUE, drawing, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WINDOW = 1 / 40  # share of the steps that a smooth curve averages


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length in the group's unit, and the note behind it."""

    label: str
    length: float
    note: str


@dataclass(frozen=True)
class BarGroup:
    """Bars of one unit under a heading, in one color (as matplotlib takes it)."""

    heading: str
    bars: Sequence[Bar]
    color: str = BLUE


def training_curves(records: Iterable[Mapping[str, Any]], path: str | Path, title: str = "") -> Path:
    """Draws loss, accuracy, learning rate and mean IoU of a run over its steps.

    Args:
        records: the lines of the run's log: `iter`, `loss`, `acc`, `lr` of a step, `iter` and `miou` (a fraction, None
            where no class was present) of an evaluation.
        path: the file to write: SVG where its suffix says so, else PNG.

    Raises:
        ResourceError: the file cannot be written.
    """
    steps: list[Mapping[str, Any]] = []
    evaluations: list[Mapping[str, Any]] = []
    for record in records:
        (evaluations if "miou" in record else steps).append(record)
    with drawing():
        figure = new_figure(12.8, 8.6, title)
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
        figure.supxlabel("step", size=10, color=GRAY)
        charts = figure.subplots(2, 2).flat
        _curve(next(charts), "loss", steps, "loss", smooth=True)
        _curve(next(charts), "accuracy in % of all pixels", steps, "acc", smooth=True)
        _curve(next(charts), "learning rate", steps, "lr")
        _curve(next(charts), "mean IoU in %", evaluations, "miou", factor=100, marker="o")
        return save_figure(figure, path)


def bar_chart(groups: Sequence[BarGroup], path: str | Path, title: str = "", subtitle: str = "") -> Path:
    """Draws groups of horizontal bars below each other, the first bar of each group on top.

    Args:
        groups: at least one, each with at least one bar.
        path: the file to write: SVG where its suffix says so, else PNG.

    Raises:
        ResourceError: the file cannot be written.
    """
    counts = [len(group.bars) for group in groups]
    with drawing():
        figure = new_figure(11, 0.9 + sum(0.3 * count + 0.55 for count in counts), title)
        figure.supxlabel(printable(subtitle), x=0.01, ha="left", size=9, color=GRAY)
        grid = figure.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": counts})
        for axes, group in zip(grid.flat, groups, strict=True):
            bars = axes.barh(range(len(group.bars)), [bar.length for bar in group.bars], color=group.color)
            axes.bar_label(bars, [printable(bar.note) for bar in group.bars], padding=5, color=GRAY)
            axes.set_yticks(range(len(group.bars)), [printable(bar.label) for bar in group.bars])
            axes.set_title(printable(group.heading))
            axes.set_xlim(0, 1.25 * max(bar.length for bar in group.bars))
            axes.invert_yaxis()
            axes.grid(visible=False)
            axes.xaxis.set_visible(False)
            axes.spines["bottom"].set_visible(False)
        return save_figure(figure, path)


def _curve(
    axes: Axes,
    title: str,
    records: Sequence[Mapping[str, Any]],
    key: str,
    *,
    smooth: bool = False,
    factor: float = 1,
    marker: str = "",
) -> None:
    """One chart of `key` over `iter`; `smooth` adds the running mean. A record without the value is left out."""
    axes.set_title(title)
    points = [(record["iter"], factor * record[key]) for record in records if record.get(key) is not None]
    if not points:
        axes.text(0.5, 0.5, "nothing yet", color=GRAY, ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    steps, values = np.array(points, np.float64).T
    axes.plot(steps, values, color=PALE_BLUE if smooth else BLUE, marker=marker or ("o" if len(points) == 1 else ""))
    if smooth:
        axes.plot(steps, _running_mean(values), color=BLUE)
    axes.set_xlim(left=0)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and those shortly before it, `(N,)` float64."""
    window = max(1, int(len(values) * _WINDOW))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    mean: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return mean
