"""Owns a report as people read it: headings and cells as text; how they are drawn is the command line's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from dgmn2cli.bench.names import RATIO_HEADING
from dgmn2cli.bench.report import OperatorRow, PartRow, Report, Row, StageRow

MISSING = "-"


@dataclass(frozen=True)
class TextTable:
    """One table.

    Attributes:
        title: what stands above it.
        headings: of the columns; `names.RATIO_HEADING` heads the one that matters most.
        numbers: headings of the columns that hold numbers.
        rows: cells.
    """

    title: str
    headings: tuple[str, ...]
    numbers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def tables(report: Report) -> list[TextTable]:
    """The report's figures, one table per model or op."""
    made = []
    for subject, group in groupby(report.rows, key=lambda row: row.subject):
        rows = list(group)
        timed = [row for row in rows if isinstance(row, Row)]
        if timed:
            made.append(_op_table(subject, timed) if report.bench == "op" else _network_table(subject, timed))
        stages = [row for row in rows if isinstance(row, StageRow)]
        if stages:
            made.append(_stage_table(subject, stages))
        operators = [row for row in rows if isinstance(row, OperatorRow)]
        if operators:
            made.append(_operator_table(subject, operators))
        parts = [row for row in rows if isinstance(row, PartRow)]
        if parts:
            made.append(_part_table(subject, parts))
    return made


def footer(report: Report) -> list[str]:
    """Where the figures are from, what the machine does at best, which checks held, what was left out."""
    machine = report.machine
    place = f"{machine.gpu}; host {machine.processor}" if machine.gpu else machine.processor
    lines = [
        f"{place}; {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {machine.extensions or machine.capability}",
        f"{machine.versions}; {machine.system}; load {machine.load:g} at {machine.time}",
    ]
    best: dict[str, list[str]] = {}
    for rate in report.rates:
        figure = f"{rate.kind} {_number(rate.gflops or rate.gbytes, 0)} {'GFLOP/s' if rate.gflops else 'GB/s'}"
        best.setdefault(rate.dtype, []).append(figure)
    lines += [f"The machine's own rates, {dtype}: {', '.join(found)}" for dtype, found in best.items()]
    if report.agreements:
        count = len(report.agreements)
        worst = max(report.agreements, key=lambda found: found.difference / found.limit)
        lines.append(
            f"Checked first: {count} comparison{'s' * (count != 1)} agree; furthest: {worst.side}, {worst.what} "
            f"differ by {worst.difference:.1e} of {worst.limit:.0e} ({worst.measure})"
        )
    for row in report.rows:
        if isinstance(row, Row) and row.executed is not None and row.executed != row.macs:
            lines.append(
                f"{row.subject}: {row.side} executes {_number(row.executed, 1, 1e9)} of the published "
                f"{_number(row.macs, 1, 1e9)} G multiply-accumulates; utilisation counts those, efficiency all"
            )
    return [*lines, f"Weights: {report.weights}.", *(f"Left out: {note}" for note in report.notes)]


def _network_table(subject: str, rows: Sequence[Row]) -> TextTable:
    first = rows[0]
    title = (
        f"{subject}, {first.task}: {first.batch} x 3 x {first.height} x {first.width}, "
        f"{_number(first.parameters, 2, 1e6)} M parameters, {_number(first.macs, 1, 1e9)} G multiply-accumulates"
    )
    headings = (
        "side",
        "how",
        "median s",
        "p10 - p90",
        "per s",
        "GFLOP/s",
        "utilisation",
        "efficiency",
        "peak MB",
        RATIO_HEADING,
        "memory",
    )
    cells = [
        (
            row.side,
            _how(row),
            _number(row.median, 3),
            f"{row.p10:.3f} - {row.p90:.3f}",
            _number(row.per_second, 2),
            _number(row.gflops, 0),
            _number(row.utilisation, 2),
            _number(row.efficiency, 2),
            _number(row.peak, 0, 1e6),
            _times(row),
            MISSING if row.memory_share is None else f"{row.memory_share:.2f}x",
        )
        for row in rows
    ]
    return TextTable(title, headings, headings[2:], cells)


def _op_table(subject: str, rows: Sequence[Row]) -> TextTable:
    title = f"{subject}, {rows[0].dtype}, batch {rows[0].batch}"
    headings = ("pass", "side", "how", "median ms", "p10 - p90", "GB/s", "GFLOP/s", RATIO_HEADING)
    cells = [
        (
            row.task,
            row.side,
            _how(row),
            _number(row.median, 2, 1e-3),
            f"{row.p10 * 1e3:.2f} - {row.p90 * 1e3:.2f}",
            _number(row.gbytes, 2),
            _number(row.gflops, 1),
            _times(row),
        )
        for row in rows
    ]
    return TextTable(title, headings, headings[3:], cells)


def _stage_table(subject: str, rows: Sequence[StageRow]) -> TextTable:
    headings = ("stage", "p50 ms", "p95 ms", "share", "pictures per s")
    cells = [
        (
            row.stage,
            _number(row.p50, 1, 1e-3),
            _number(row.p95, 1, 1e-3),
            f"{100 * row.share:.1f} %",
            _number(row.per_second, 3),
        )
        for row in rows
    ]
    return TextTable(f"{subject}, from file to mask", headings, headings[1:], cells)


def _operator_table(subject: str, rows: Sequence[OperatorRow]) -> TextTable:
    headings = ("operator", "calls", "seconds", "share")
    cells = [(row.operator, str(row.calls), _number(row.seconds, 3), f"{100 * row.share:.1f} %") for row in rows]
    return TextTable(f"{subject}, by operator", headings, headings[1:], cells)


def _part_table(subject: str, rows: Sequence[PartRow]) -> TextTable:
    headings = ("part", "seconds a run", "share", "of")
    cells = [(row.part, _number(row.seconds, 3), f"{100 * row.share:.1f} %", row.of) for row in rows]
    return TextTable(f"{subject}, by part", headings, headings[1:3], cells)


def _how(row: Row) -> str:
    return f"{row.form}, {row.backend}, {row.dtype}{', compiled' if row.compiled else ''}"


def _times(row: Row) -> str:
    return f"{row.times_as_fast:.2f}x as fast"


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return MISSING if value is None else f"{value / unit:.{digits}f}"
