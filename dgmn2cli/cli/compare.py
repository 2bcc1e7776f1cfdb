"""`dgmn2 compare`: two evaluations of the same images, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from dgmn2cli.cli import render
from dgmn2cli.cli.options import OUTPUT_FILE, PATH, Session, pass_session

if TYPE_CHECKING:
    from dgmn2cli.evaluate.compare import Compared, PairedComparison

SHOWN = 5  # images that got better, and worse


@click.command("compare")
@click.argument("first", type=PATH, metavar="A.json")
@click.argument("second", type=PATH, metavar="B.json")
@click.option("--html", type=OUTPUT_FILE, metavar="FILE", help="Write a page, too: one file, no network.")
@pass_session
def compare(session: Session, first: Path, second: Path, html: Path | None) -> None:
    """Compare two reports of `eval --report` on the same images: B minus A, with intervals.

    The bootstrap draws images, the same ones for both, so an interval that excludes 0 means more than chance. Reports
    about other images, classes or labels are refused.

    Example: dgmn2 compare tiny.json small.json --html compare.html
    """
    from dgmn2cli.evaluate.compare import compare, write_comparison_page
    from dgmn2cli.evaluate.reading import read_report
    from dgmn2cli.files import check_file

    if html is not None:
        check_file(html)
    found = compare(read_report(first), read_report(second))
    if html is not None:
        write_comparison_page(html, found)
    render.emit(session, found, lambda: _tables(found))


def _points(value: float) -> str:
    return "n/a" if value != value else f"{100 * value:+.2f}"


def _about(one: Compared) -> str:
    corrupted = f", images corrupted by {one.corruption}" if one.corruption else ""
    return f"{one.title}: mIoU {100 * one.mean_iou:.2f} %{corrupted}"


def _tables(found: PairedComparison) -> list[RenderableType]:
    right = ("A, %", "B, %", "difference", f"{100 * found.difference.level:.0f} % interval")
    classes = render.make_table("class", *right, right=right)
    for entry in found.classes:
        shares = [render.percent(None if value != value else 100 * value) for value in (entry.first, entry.second)]
        span = f"{_points(entry.interval[0])} to {_points(entry.interval[1])}"
        classes.add_row(entry.name, *shares, _points(entry.difference), span)
    low, high = found.difference.interval
    verdict = "more than chance" if found.certain else "no significant difference on these images"
    without = f", {found.unlabelled} without labels" if found.unlabelled else ""
    rows = [
        ("A", _about(found.first)),
        ("B", _about(found.second)),
        (
            "difference",
            f"{_points(found.difference.mean_iou)}, {right[-1]} {_points(low)} to {_points(high)}: {verdict}",
        ),
        ("images", f"{found.better} better, {found.worse} worse, {found.equal} equal{without}"),
    ]
    better = [image for image in found.images[:SHOWN] if image.difference > 0]
    worse = [image for image in reversed(found.images[-SHOWN:]) if image.difference < 0]
    for title, images in (("better", better), ("worse", worse)):
        rows += [("" if i else title, f"{_points(image.difference)}  {image.name}") for i, image in enumerate(images)]
    return [classes, "", render.record_table(rows)]
