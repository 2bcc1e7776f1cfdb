"""How evaluations look: the table of classes, the figures below it, the zoo's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from dgmn2cli.cli.render import MISSING, make_table, percent, record_table

if TYPE_CHECKING:
    from dgmn2cli.evaluate import EvalReport
    from dgmn2cli.evaluate.run import ZooReport
    from dgmn2cli.zoo import Zoo


def share(value: float) -> str:
    """A fraction in percent, two digits; `n/a` where it is not defined."""
    return "n/a" if math.isnan(value) else f"{100 * value:.2f}"


def report_tables(report: EvalReport) -> list[RenderableType]:
    """The classes, the groups, and the figures."""
    scores = report.scores
    title = f"PARTIAL: {report.data.images} of {report.data.of} images" if report.partial else None
    classes = make_table("class", "IoU", "accuracy", "pixels", right=("IoU", "accuracy", "pixels"), title=title)
    for entry in scores.classes:
        classes.add_row(entry.name, share(entry.iou), share(entry.accuracy), f"{entry.labelled:,}")
    parts: list[RenderableType] = [classes, ""]
    if scores.categories:
        groups = make_table("category", "IoU", right=("IoU",))
        for group in scores.categories:
            groups.add_row(group.name, share(group.iou))
        parts += [groups, ""]
    if scores.absent:
        names = ", ".join(scores.absent)
        parts.append(Text(f"Not in the labels, left out of the means unless predicted (then IoU 0): {names}"))
    return [*parts, record_table([*_figures(report), *_verdict(report), *_about(report)])]


def _figures(report: EvalReport) -> list[tuple[str, str]]:
    scores = report.scores
    rows = [("aAcc", scores.pixel_accuracy), ("mIoU", scores.mean_iou), ("mAcc", scores.mean_accuracy)]
    rows += [("category mIoU", scores.mean_category_iou)] if scores.categories else []
    return [(name, f"{share(value)} %") for name, value in rows]


def _verdict(report: EvalReport) -> list[tuple[str, str]]:
    rows = _named_once("no comparison", report.no_comparison)
    if report.comparison is not None:
        found = report.comparison
        rows += [("published", f"{found.published:.2f} %"), ("difference", f"{found.difference:+.2f}")]
    if report.official is not None:
        official = report.official
        rows.append(("cityscapesScripts", f"{share(official.mean_iou)} %, version {official.version}"))
        rows.append(("difference", f"{official.difference:.12f} at most, over classes, categories and means"))
    return rows


def _named_once(name: str, values: Sequence[str]) -> list[tuple[str, str]]:
    return [("" if index else name, value) for index, value in enumerate(values)]


def _about(report: EvalReport) -> list[tuple[str, str]]:
    run, data = report.run, report.data
    many = f", {report.processes} processes" if report.processes > 1 else ""
    return [
        ("images", f"{data.images} of {data.of} in split {data.split} of {data.root}"),
        ("procedure", str(report.protocol)),
        ("model", f"{run.model} ({run.dtype}, {run.form}), sha256 {run.sha256[:12]}"),
        ("ran", f"{report.seconds:.1f} s on {run.device_name}, op backend {run.backend}{many}"),
    ]


def zoo_table(report: ZooReport, zoo: Zoo, ms_flip: bool) -> list[RenderableType]:
    """The published table with measured columns; models not on disk have none."""
    kind = "ms+flip" if ms_flip else "mIoU"
    headings = (f"published\n{kind}", f"measured\n{kind}", "difference")
    partial = next((r.data for r in report.reports if r.partial), None)
    title = f"PARTIAL: {partial.images} of {partial.of} images" if partial else None
    table = make_table("key", "head", "backbone", *headings, "", right=headings, title=title)
    by_model = {entry.run.model: entry for entry in report.reports}
    failed = {failure.model for failure in report.failures}
    for entry in zoo.segmentors:
        found = by_model.get(entry.key)
        measured = share(found.scores.mean_iou) if found else MISSING
        comparison = found.comparison if found else None
        difference = f"{comparison.difference:+.2f}" if comparison else MISSING
        state = "not on disk" if entry.key in report.missing else "failed" if entry.key in failed else ""
        published = percent(entry.miou_ms_flip if ms_flip else entry.miou)
        names = (entry.key, entry.head, entry.backbone.removeprefix("dgmn2_"))
        table.add_row(*names, published, measured, difference, state)
    reasons = list(dict.fromkeys(reason for found in report.reports for reason in found.no_comparison))
    rows = _named_once("no comparison", reasons)
    if report.reports:
        rows += _about(report.reports[0])[:2]
    return [table, "", record_table(rows)]
