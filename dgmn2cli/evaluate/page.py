"""A report as a page for a browser, and as tables for a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from dgmn2cli.evaluate.report import EvalReport
from dgmn2cli.files import atomic_write
from dgmn2cli.report import html


def write_report_page(path: Path, report: EvalReport) -> Path:
    """Writes the page of an evaluation: one file that needs no network.

    Raises:
        ResourceError: it cannot be written.
    """
    names = [score.name for score in report.scores.classes]
    trimaps = report.analysis.boundary.trimaps if report.analysis.boundary is not None else ()
    return html.write_page(
        path,
        "evaluation.html",
        report=report,
        about=about(report),
        views=sorted(report.views.items(), key=lambda item: (item[1].rank, item[0])),
        crops=sorted(report.crops.items(), key=lambda item: (item[1].rank, item[0])),
        trimap=[(70 + 60 * i, 190 - 180 * point.accuracy) for i, point in enumerate(trimaps)],
        class_ious=[[_permille(image.classes.get(name)) for name in names] for image in report.analysis.images],
    )


def about(report: EvalReport) -> list[tuple[str, str]]:
    """What made the figures: names and values for a page's head."""
    run, data = report.run, report.data
    rows = [
        ("model", f"{run.title} ({run.form} form)" if report.protocol else "none: predictions from files"),
        ("weights", run.checkpoint or "in the graph"),
        *([("graph", f"{run.graph}, sha256 {run.graph_sha256}")] if run.graph else []),
        ("sha256 of the weights", run.sha256 or "not known"),
        ("procedure", str(report.protocol or "not known: the predictions are from files")),
        ("data", f"{data.images} of {data.of} images, split {data.split} of {data.root}"),
        *data.remarks(),
        ("data fingerprint", report.certificate.fingerprint),
        ("device", f"{run.device}: {run.device_name}"),
        ("runtime", f"{run.runtime} {run.runtime_version}, {run.precision}" if report.protocol else "none"),
        *([("op backend", run.backend)] if run.backend else []),
        ("processes, seconds", f"{report.processes}, {report.seconds:.1f}"),
        ("versions", ", ".join(f"{name} {value}" for name, value in report.versions.items())),
        ("command", report.command or "from Python"),
    ]
    rows += [("published figure", "; ".join(report.no_comparison))] if report.no_comparison else []
    return rows


def _permille(value: float | None) -> int | None:
    return None if value is None else round(1000 * value)


def write_tables(folder: Path, report: EvalReport) -> list[Path]:
    """Writes `classes.csv` and `images.csv`, fractions from 0 to 1; what is not known is empty.

    Raises:
        ResourceError: one cannot be written.
    """
    names = [score.name for score in report.scores.classes]
    boundary = report.analysis.boundary.classes if report.analysis.boundary is not None else {}
    iiou = report.analysis.instances.classes if report.analysis.instances is not None else {}
    classes = [
        [s.name, s.iou, *report.analysis.intervals.classes[s.name], s.accuracy, boundary.get(s.name), iiou.get(s.name),
         s.labelled, s.predicted, s.intersection]
        for s in report.scores.classes
    ]  # fmt: skip
    heads = ["class", "iou", "iou_low", "iou_high", "accuracy", "boundary_iou", "iiou"]
    images = [
        [i.name, i.pixel_accuracy, i.mean_iou, i.doubt, *(i.classes.get(name) for name in names)]
        for i in report.analysis.images
    ]
    image_heads = ["image", "pixel_accuracy", "mean_iou", "doubt", *(f"iou {name}" for name in names)]
    return [
        _write_csv(folder / "classes.csv", [*heads, "labelled", "predicted", "intersection"], classes),
        _write_csv(folder / "images.csv", image_heads, images),
    ]


def _write_csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        writer.writerow(["" if isinstance(value, float) and math.isnan(value) else value for value in row])
    return atomic_write(path, text.getvalue().encode("utf-8", "backslashreplace"))
