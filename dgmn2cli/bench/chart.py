"""Owns the picture of a benchmark: how long each side took and how much memory it held, as bars, drawn with OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import cv2
import numpy as np

from dgmn2cli.bench.report import Report, Row, StageRow
from dgmn2cli.errors import ConfigError
from dgmn2cli.inference.visualize import draw_text, text_width

WIDTH = 1100
_LEFT, _RIGHT, _LINE, _GAP, _TEXT = 250, 190, 30, 22, 11  # pixels; _TEXT is the height of a capital letter
_PAPER, _INK = (255, 255, 255), (60, 56, 52)  # blue green red
_TIME, _MEMORY = (190, 105, 30), (60, 140, 235)


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length in the group's unit, what is written behind it, its colour (blue, green, red)."""

    label: str
    length: float
    note: str
    color: tuple[int, int, int] = _TIME


@dataclass(frozen=True)
class Group:
    """Bars of one unit under a heading."""

    heading: str
    bars: Sequence[Bar]


def chart(report: Report) -> np.ndarray:
    """The report's figures as bars.

    Returns:
        `(H, 1100, 3)` uint8, blue green red.

    Raises:
        ConfigError: the report holds nothing that bars can show.
    """
    groups = _groups(report)
    if not groups:
        raise ConfigError("nothing to draw", where=f"--bench {report.bench}", why="it has no times to compare")
    height = 2 * _GAP + 2 * _LINE + sum(_LINE * (len(group.bars) + 1) + _GAP for group in groups)
    canvas = np.full((height, WIDTH, 3), _PAPER, np.uint8)
    machine = report.machine
    draw_text(canvas, f"dgmn2 benchmark --bench {report.bench}", 20, _GAP, 13, bold=True)
    draw_text(
        canvas,
        f"{machine.gpu or machine.processor}; {machine.versions}; {machine.time[:10]}",
        20,
        _GAP + _LINE,
        _TEXT,
        color=_INK,
    )
    top = 2 * _GAP + 2 * _LINE
    for group in groups:
        draw_text(canvas, group.heading, 20, top, _TEXT + 1, bold=True)
        longest = max(bar.length for bar in group.bars)
        for index, bar in enumerate(group.bars, 1):
            _draw(canvas, bar, top + index * _LINE, longest)
        top += _LINE * (len(group.bars) + 1) + _GAP
    return canvas


def _draw(canvas: np.ndarray, bar: Bar, middle: int, longest: float) -> None:
    draw_text(canvas, bar.label, _LEFT - 12 - text_width(bar.label, _TEXT), middle, _TEXT, color=_INK)
    end = _LEFT + max(2, round(bar.length / longest * (WIDTH - _LEFT - _RIGHT)))
    cv2.rectangle(canvas, (_LEFT, middle - 9), (end, middle + 9), bar.color, cv2.FILLED)
    draw_text(canvas, bar.note, end + 8, middle, _TEXT, color=_INK)


def _groups(report: Report) -> list[Group]:
    """Per subject and task: times beside this package's, then memory beside it; or the stages of a picture's way."""
    groups = []
    rows = [row for row in report.rows if isinstance(row, Row)]
    for (subject, task), found in groupby(rows, key=lambda row: (row.subject, row.task)):
        sides = list(found)
        own = sides[0]
        times = [Bar(_label(row), row.times_as_fast, _note(row.times_as_fast, _seconds(row.median))) for row in sides]
        groups.append(Group(f"{subject}, {task}: time", times))
        held = [(row, row.peak) for row in sides if row.peak]
        if own.peak and len(held) > 1:
            bars = [
                Bar(_label(row), peak / own.peak, _note(peak / own.peak, f"{peak / 1e6:.0f} MB"), _MEMORY)
                for row, peak in held
            ]
            groups.append(Group(f"{subject}, {task}: peak memory above the weights", bars))
    stages = [row for row in report.rows if isinstance(row, StageRow) and row.stage not in ("sum", "wall")]
    for subject, found_stages in groupby(stages, key=lambda row: row.subject):
        bars = [Bar(row.stage, row.p50, _seconds(row.p50)) for row in found_stages]
        groups.append(Group(f"{subject}: from file to mask", bars))
    return groups


def _label(row: Row) -> str:
    return f"{row.side}, {row.dtype}{', compiled' if row.compiled else ''}"


def _note(ratio: float, figure: str) -> str:
    return f"{ratio:.2f} x  ({figure})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
