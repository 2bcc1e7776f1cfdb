"""`dgmn2 data`: checking and showing a data set, known layouts, synthetic ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType
from rich.text import Text

from dgmn2cli.cli import protocol
from dgmn2cli.cli.options import NAME, PATH, SIZE, OutputType, Session, model_option, pass_session
from dgmn2cli.cli.progress import TerminalObserver
from dgmn2cli.cli.render import emit, make_table, notice, prose
from dgmn2cli.errors import printable

if TYPE_CHECKING:
    from dgmn2cli.data.check import DataReport

WORKERS = click.IntRange(1, 256)


@click.group()
def data() -> None:
    """Check a data set, look at it, make a synthetic one; the known layouts."""


@data.command(short_help="Look at every pair of image and label map.")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "--split", "splits", type=NAME, multiple=True, metavar="NAME", help="Splits to check.  [default: all labelled]"
)
@protocol.dataset_option
@click.option("--quick", is_flag=True, help="Look at the images' headers, but do not decode them.")
@click.option("--workers", type=WORKERS, default=2, metavar="N", help="Threads that work side by side.")
@pass_session
def check(
    session: Session, folder: Path, splits: tuple[str, ...], dataset: str | None, quick: bool, workers: int
) -> None:
    """Look at every pair in DIR: files, sizes, ids, classes.

    DIR is a Cityscapes tree, a folder with a dataset.toml, or with --dataset a known data set.
    """
    from dgmn2cli.data.catalog import find_splits, open_dataset
    from dgmn2cli.data.check import check_dataset, require_sound
    from dgmn2cli.data.preset import find_preset, open_preset

    if dataset is not None:
        there = splits or find_preset(dataset).splits_in(folder) or (None,)
        sets = [open_preset(dataset, folder, split) for split in there]
    else:
        sets = [open_dataset(folder, split) for split in splits or find_splits(folder) or ("train",)]
    with TerminalObserver(session) as observer:
        reports = [check_dataset(found, thorough=not quick, workers=workers, observer=observer) for found in sets]
    emit(session, reports, lambda: [part for report in reports for part in _report(report)])
    for report in reports:
        for note in report.remarks:
            notice(session, f"Note: {report.split}: {note}")
    for report in reports:
        require_sound(report)


def _report(report: DataReport) -> list[RenderableType]:
    heading = f"{report.root}, {report.split}: {report.pairs} pairs, {len(report.faults)} faulty"
    right = ("pixels", "share, %", "images", "weight")
    table = make_table("class", *right, right=right)
    for entry in report.classes:
        share, weight = f"{100 * entry.share:.2f}", f"{entry.weight:.3f}"
        table.add_row(Text(printable(entry.name)), f"{entry.pixels:,}", share, str(entry.images), weight)
    sizes = ", ".join(f"{size} ({count})" for size, count in list(report.sizes.items())[:5]) or "none"
    ignored = f"sizes: {sizes}; ignored: {100 * report.ignored_share:.2f} % of all pixels\n"
    return [Text(printable(heading)), table, ignored]


@data.command(short_help="Make synthetic streets as a Cityscapes tree.")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--images", type=int, default=80, metavar="N", help="How many images to draw, over all splits.")
@click.option("--val", type=int, metavar="N", help="How many of them go to val.  [default: one in five, at least one]")
@click.option("--size", type=SIZE, default="512x256", metavar="WxH", help="Size of an image, in pixels.")
@click.option("--seed", type=int, default=0, metavar="N", help="The same seed gives the same files.")
@click.option(
    "--layout", type=NAME, metavar="NAME", help="Layout and ids of this known data set.  [default: Cityscapes']"
)
@click.option("--workers", type=WORKERS, default=2, metavar="N", help="Threads that work side by side.")
@pass_session
def synth(
    session: Session,
    folder: Path,
    images: int,
    val: int | None,
    size: tuple[int, int],
    seed: int,
    layout: str | None,
    workers: int,
) -> None:
    """Draw synthetic streets of all 19 classes into DIR, in the layout of Cityscapes or of another data set."""
    from dgmn2cli.data.preset import find_preset
    from dgmn2cli.demo.streets.dataset import make_dataset

    preset = None if layout is None else find_preset(layout)
    held_out = max(1, images // 5) if val is None else val
    with TerminalObserver(session) as observer:
        observer.begin("drawing", images)
        made = {"train": images - held_out, "val": held_out}
        step = observer.advance
        report = make_dataset(folder, **made, size=size, seed=seed, workers=workers, step=step, layout=preset)
    shown = [f"{count} in {split} ({len(report.classes[split])} classes)" for split, count in report.images.items()]
    emit(session, report, lambda: f"{report.root}: {', '.join(shown)}")


@data.command(short_help="List the known data sets.")
@pass_session
def presets(session: Session) -> None:
    """List the data sets whose layouts and ids are known: what `eval --dataset` takes."""
    from dgmn2cli.data import preset

    known = [found.describe() for found in preset.presets().values()]

    def shown() -> list[RenderableType]:
        table = make_table("name", "data set", "splits", "without the classes", whole=("name",))
        for row in known:
            without = ", ".join(row["mapping"].without)
            table.add_row(row["name"], row["title"], ", ".join(row["splits"]), without)
        return [table, prose("Folders, file names and ids: dgmn2 data template NAME")]

    emit(session, known, shown)


@data.command(short_help="Print a known data set's description.")
@click.argument("name", shell_complete=protocol.complete_dataset)
@pass_session
def template(session: Session, name: str) -> None:
    """Print the commented dataset.toml of the known data set NAME, to change and keep beside your own images.

    Example: dgmn2 data template idd > mine/dataset.toml
    """
    from dgmn2cli.data.preset import find_preset

    preset = find_preset(name)
    text = preset.path.read_text(encoding="utf-8")
    emit(session, {"name": preset.name, "description": text}, lambda: text.rstrip("\n"))


@data.command(short_help="Show samples as a training sees them.")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--split", type=NAME, default="train", metavar="NAME", help="Split of the data set.")
@protocol.dataset_option
@model_option
@click.option("-o", "--out", type=OutputType(".png"), default="samples.png", metavar="FILE", help="The sheet, a PNG.")
@click.option("--samples", type=click.IntRange(1, 100), default=6, metavar="N", help="How many samples to show.")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Seed of the augmentation.")
@pass_session
def browse(
    session: Session, folder: Path, split: str, dataset: str | None, model: str, out: Path, samples: int, seed: int
) -> None:
    """Draw a contact sheet of samples of DIR: images, then with their labels as MODEL's training augments them."""
    from dgmn2cli.data.catalog import open_configured
    from dgmn2cli.data.preset import find_preset, open_preset
    from dgmn2cli.inference.load import resolve
    from dgmn2cli.training.browse import write_samples

    recipe = resolve(model, zoo=session.zoo())
    if dataset is None:
        found = open_configured(recipe.data, split, folder)
    else:
        typed = click.get_current_context().get_parameter_source("split") is click.core.ParameterSource.COMMANDLINE
        found = open_preset(dataset, folder, split if typed else find_preset(dataset).said.splits[0])
    shown = write_samples(found, recipe.config, out, count=samples, seed=seed)
    emit(session, {"sheet": out, "samples": shown}, lambda: f"{out}: {', '.join(shown)}")
