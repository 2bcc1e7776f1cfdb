"""`dgmn2 data`: checking a data set, and making a synthetic one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType
from rich.text import Text

from dgmn2cli.cli.options import NAME, PATH, SIZE, Session, pass_session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.cli.render import emit, make_table, notice
from dgmn2cli.errors import printable

if TYPE_CHECKING:
    from dgmn2cli.data.check import DataReport

WORKERS = click.IntRange(1, 256)


@click.group()
def data() -> None:
    """Check a data set, or make a synthetic one."""


@data.command(short_help="Look at every pair of image and label map.")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "--split", "splits", type=NAME, multiple=True, metavar="NAME", help="Splits to check.  [default: all labelled]"
)
@click.option("--quick", is_flag=True, help="Look at the images' headers, but do not decode them.")
@click.option("--workers", type=WORKERS, default=2, metavar="N", help="Threads.")
@pass_session
def check(session: Session, folder: Path, splits: tuple[str, ...], quick: bool, workers: int) -> None:
    """Look at every pair in DIR, a Cityscapes tree or a folder with a dataset.toml: files, sizes, ids, classes."""
    from dgmn2cli.data.catalog import find_splits, open_dataset
    from dgmn2cli.data.check import check_dataset, require_sound

    sets = [open_dataset(folder, split) for split in splits or find_splits(folder) or ("train",)]
    with TerminalObserver(session) as observer:
        reports = [check_dataset(found, thorough=not quick, workers=workers, observer=observer) for found in sets]
    emit(session, reports, lambda: [part for report in reports for part in _report(report)])
    for report in reports:
        for note in report.notes:
            notice(session, f"Note: {report.split}: {note}")
    for report in reports:
        require_sound(report)


def _report(report: DataReport) -> list[RenderableType]:
    heading = f"{report.root}, {report.split}: {report.pairs} pairs, {len(report.faults)} faulty"
    right = ("pixels", "share %", "images", "weight")
    table = make_table("class", *right, right=right)
    for entry in report.classes:
        share, weight = f"{100 * entry.share:.2f}", f"{entry.weight:.3f}"
        table.add_row(Text(printable(entry.name)), f"{entry.pixels:,}", share, str(entry.images), weight)
    sizes = ", ".join(f"{size} ({count})" for size, count in list(report.sizes.items())[:5]) or "none"
    ignored = f"sizes: {sizes}; ignored: {100 * report.ignored_share:.2f} % of all pixels\n"
    return [Text(printable(heading)), table, ignored]


@data.command(short_help="Make synthetic streets as a Cityscapes tree.")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--images", type=int, default=80, metavar="N", help="Images in all.")
@click.option("--val", type=int, metavar="N", help="How many of them go to val.  [default: one in five, at least one]")
@click.option("--size", type=SIZE, default="512x256", metavar="WxH", help="Size of an image.")
@click.option("--seed", type=int, default=0, help="The same seed gives the same files.")
@click.option("--workers", type=WORKERS, default=2, metavar="N", help="Threads.")
@pass_session
def synth(
    session: Session, folder: Path, images: int, val: int | None, size: tuple[int, int], seed: int, workers: int
) -> None:
    """Draw synthetic streets of all 19 classes into DIR, in the layout of Cityscapes, splits train and val."""
    from dgmn2cli.demo.streets.dataset import make_dataset

    held_out = max(1, images // 5) if val is None else val
    with TerminalObserver(session) as observer:
        observer.begin("drawing", images)
        made = {"train": images - held_out, "val": held_out}
        report = make_dataset(folder, **made, size=size, seed=seed, workers=workers, step=observer.advance)
    shown = [f"{count} in {split} ({len(report.classes[split])} classes)" for split, count in report.images.items()]
    emit(session, report, lambda: f"{report.root}: {', '.join(shown)}")
