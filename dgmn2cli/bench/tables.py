"""A report as people read it: headings and cells as text, lines below them, and groups of bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from dgmn2cli.bench import RATIO_HEADING
from dgmn2cli.bench.report import AnyRow, PartRow, Report, Row
from dgmn2cli.errors import ConfigError
from dgmn2cli.files import to_plain
from dgmn2cli.plotting import ORANGE
from dgmn2cli.report.charts import Bar, BarGroup

MISSING = "-"
# headings of columns without numbers
WORDS = ("implementation", "how", "pass", "part")
TextTable = tuple[str, list[dict[str, str]]]  # a title, and the rows: heading -> cell


def tables(report: Report) -> list[TextTable]:
    """The report's figures: per model, op or image one table of each kind of row."""
    made = []
    for (name, whole), group in groupby(report.rows, key=lambda row: (row.name, getattr(row, "of", ""))):
        rows = list(group)
        first = rows[0]
        if not isinstance(first, Row):
            made.append((f"{name}, of {whole}", _part_cells(rows)))
            continue
        columns, title = _COLUMNS.get(report.bench, _NETWORK), f"{name}, {first.width} x {first.height}"
        if report.bench == "op":
            title = f"{name}, {first.dtype}, batch {first.batch}"
        elif columns is _NETWORK:
            title = (
                f"{name}, {first.task}: {first.batch} x 3 x {first.height} x {first.width}, "
                f"{_number(first.parameters, 2, 1e6)} M parameters, "
                f"{_number(first.macs, 1, 1e9)} G multiply-accumulates"
            )
        made.append((title, [{heading: cell(row) for heading, cell in columns.items()} for row in rows]))
    return made


def footer(report: Report) -> list[str]:
    """Where the figures are from, what the machine does at best, which checks held, what was left out."""
    machine = report.machine
    hardware = f"{machine.gpu}; host {machine.processor}" if machine.gpu else machine.processor
    extensions = machine.extensions or machine.capability
    lines = [
        f"{hardware}; {machine.cores} cores, {machine.memory / 2**30:.0f} GiB, {extensions}",
        f"{machine.versions}; {machine.system}; load {machine.load:g} at {machine.time}",
    ]
    best: dict[str, list[str]] = {}
    for rate in report.rates:
        figure = f"{rate.kind} {_number(rate.gflops or rate.gbytes, 0)} {'GFLOP/s' if rate.gflops else 'GB/s'}"
        best.setdefault(rate.dtype, []).append(figure)
    lines += [f"The machine's own rates, {dtype}: {', '.join(found)}" for dtype, found in best.items()]
    if report.agreements:
        count = len(report.agreements)
        worst = max(report.agreements, key=lambda found: found.difference / found.limit if found.limit else 0)
        lines.append(
            f"Checked first: {count} comparison{'s' * (count != 1)} agree; furthest: {worst.implementation}, "
            f"{worst.what} differ by {worst.difference:.1e} of {worst.limit:.0e} ({worst.measure})"
        )
    lines += [
        f"{row.name}: {row.implementation} executes {_number(row.executed, 1, 1e9)} of the published "
        f"{_number(row.macs, 1, 1e9)} G multiply-accumulates; utilisation counts those, efficiency all"
        for row in report.timed()
        if row.executed is not None and row.executed != row.macs
    ]
    weights = [] if report.bench in ("decode", "stream") else [f"Weights: {report.weights}."]
    return [*lines, *weights, *(f"Left out: {note}" for note in report.notes)]


def bar_groups(report: Report) -> list[BarGroup]:
    """Per name and task: times beside this package's, then memory beside it; or the stages of an image's way.

    Raises:
        ConfigError: the report holds nothing that bars can show.
    """
    groups = []
    for (name, task), group in groupby(report.timed(), key=lambda row: (row.name, row.task)):
        rows = list(group)
        own = rows[0].peak
        bars = [Bar(_label(row), row.times_as_fast, _note(row.times_as_fast, _seconds(row.median))) for row in rows]
        groups.append(BarGroup(f"{name}, {task}: time", bars))
        held = [(row, row.peak / own, row.peak) for row in rows if own and row.peak]
        if len(held) > 1:
            bars = [Bar(_label(row), ratio, _note(ratio, f"{peak / 1e6:.0f} MB")) for row, ratio, peak in held]
            groups.append(BarGroup(f"{name}, {task}: peak memory above the weights", bars, ORANGE))
    stages = [row for row in report.rows if isinstance(row, PartRow) and report.bench == "e2e"]
    for name, found in groupby(stages, key=lambda row: row.name):
        bars = [Bar(row.part, row.seconds, _seconds(row.seconds)) for row in found if row.part not in ("sum", "wall")]
        groups.append(BarGroup(f"{name}: from file to mask", bars))
    if not groups:
        raise ConfigError("nothing to draw", where=f"--bench {report.bench}", why="it has no times to compare")
    return groups


def _label(row: Row) -> str:
    return f"{row.implementation}, {row.dtype}{', compiled' if row.compiled else ''}"


def _note(ratio: float, figure: str) -> str:
    return f"{ratio:.2f} x  ({figure})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _number(value: float | None, digits: int, unit: float = 1.0) -> str:
    return MISSING if value is None else f"{value / unit:.{digits}f}"


def _how(row: Row) -> str:
    return f"{row.form}, {row.backend}, {row.dtype}{', compiled' if row.compiled else ''}"


def _as_fast(row: Row) -> str:
    return f"{row.times_as_fast:.2f}x as fast"


# tables: heading -> cell of a row
Columns = Mapping[str, Callable[[Any], str]]
_NAMES: Columns = {"implementation": lambda row: row.implementation, "how": _how}
_MILLISECONDS: Columns = {
    "median ms": lambda row: _number(row.median, 2, 1e-3),
    "p10 - p90": lambda row: f"{row.p10 * 1e3:.2f} - {row.p90 * 1e3:.2f}",
}
_NETWORK: Columns = {
    **_NAMES,
    "median s": lambda row: _number(row.median, 3),
    "p10 - p90": lambda row: f"{row.p10:.3f} - {row.p90:.3f}",
    "per s": lambda row: _number(row.per_second, 2),
    "GFLOP/s": lambda row: _number(row.gflops, 0),
    "utilisation": lambda row: _number(row.utilisation, 2),
    "efficiency": lambda row: _number(row.efficiency, 2),
    "peak MB": lambda row: _number(row.peak, 0, 1e6),
    RATIO_HEADING: _as_fast,
    "memory": lambda row: MISSING if row.memory_share is None else f"{row.memory_share:.2f}x",
}
_OP: Columns = {
    "pass": lambda row: row.task,
    **_NAMES,
    **_MILLISECONDS,
    "GB/s": lambda row: _number(row.gbytes, 2),
    "GFLOP/s": lambda row: _number(row.gflops, 1),
    RATIO_HEADING: _as_fast,
}
_DECODE: Columns = {
    **_NAMES,
    **_MILLISECONDS,
    "per s": lambda row: _number(row.per_second, 1),
    RATIO_HEADING: _as_fast,
    "dgmn2cli takes": lambda row: f"{1 / row.times_as_fast:.2f}x as long",
}
_GRAPH: Columns = {**_NAMES, **_MILLISECONDS, "per s": _NETWORK["per s"], "the first is": _as_fast}
_COLUMNS = {"op": _OP, "decode": _DECODE, "graph": _GRAPH}


def _part_cells(rows: Sequence[AnyRow]) -> list[dict[str, str]]:
    """The fields that a row of the group has, seconds as they are and shares in percent."""
    plain = [{**to_plain(row), "share": f"{100 * row.share:.1f} %"} for row in rows if isinstance(row, PartRow)]
    used = [key for key in plain[0] if key not in ("name", "of") and any(row[key] is not None for row in plain)]

    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value or MISSING)

    return [{key.replace("_", " "): cell(row[key]) for key in used} for row in plain]
