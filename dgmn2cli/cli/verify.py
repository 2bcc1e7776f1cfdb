"""`dgmn2 verify`: whether a report's numbers can be reproduced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import DEVICE, PATH, Session, complete_model, pass_session, threads_option
from dgmn2cli.errors import ConfigError, shown
from dgmn2cli.zoo import short_name

if TYPE_CHECKING:
    from dgmn2cli.cli.progress import TerminalObserver
    from dgmn2cli.data.dataset import SegmentationSet
    from dgmn2cli.evaluate.engine import Source
    from dgmn2cli.evaluate.reading import ReportFile
    from dgmn2cli.evaluate.report import DataInfo
    from dgmn2cli.evaluate.verify import Verification
    from dgmn2cli.inference.runtimes import AnyRecipe


@click.command("verify")
@click.argument("report", type=PATH, metavar="REPORT.json")
@click.option("--data-root", type=PATH, metavar="DIR", help="Where the data set lies.  [default: as the report says]")
@click.option("--checkpoint", type=PATH, metavar="FILE", help="The weights.  [default: as the report says]")
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    shell_complete=complete_model,
    help="The model, or its configuration.  [default: as the report says]",
)
@click.option(
    "--from", "predictions", type=PATH, metavar="DIR", help="Folder of the predictions, for a report of `eval --from`."
)
@click.option(
    "--device", type=DEVICE, metavar="auto|cpu|cuda[:N]|mps", help="Where to compute.  [default: as the report says]"
)
@threads_option
@pass_session
def verify(
    session: Session,
    report: Path,
    data_root: Path | None,
    checkpoint: Path | None,
    model: str | None,
    predictions: Path | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Check a report of `eval --report`: exit 1 names the first difference.

    Every figure is computed again from the per-image counts; the weights and the files of a sample of images are
    hashed; the sample is run again and compared matrix by matrix.

    Example: dgmn2 verify report.json --data-root data/cityscapes
    """
    from dgmn2cli.cli.progress import TerminalObserver
    from dgmn2cli.evaluate.engine import FROM_FILES
    from dgmn2cli.evaluate.reading import read_report
    from dgmn2cli.evaluate.verify import check_figures
    from dgmn2cli.evaluate.verify import verify as check
    from dgmn2cli.runtime import set_threads

    set_threads(threads)
    found = read_report(report)
    check_figures(found)  # before anything is loaded
    recipe = None if found.run.model == FROM_FILES else _recipe(session, found, model, checkpoint, device)
    data = _opened(found.data, data_root or Path(found.data.root), recipe)
    with TerminalObserver(session) as observer:
        if recipe is None:
            source = _saved(found, data, predictions or Path(found.run.checkpoint), observer)
        else:
            source = _network(session, found, data, recipe, device, observer)
        answer = check(found, data, source, observer)
    render.emit(session, answer, lambda: _table(answer))


def _opened(about: DataInfo, root: Path, recipe: AnyRecipe | None) -> SegmentationSet:
    """The data set that a report is about, under `root`, as `eval` opens it: a configuration may describe it."""
    from dgmn2cli.config import DataConfig
    from dgmn2cli.data.catalog import open_configured
    from dgmn2cli.data.corruption import Corruption
    from dgmn2cli.data.preset import open_preset
    from dgmn2cli.inference.load import Recipe

    mapping, corrupted = about.mapping, about.corruption
    described = recipe.data if isinstance(recipe, Recipe) else DataConfig()
    data = open_preset(mapping.dataset, root, about.split) if mapping else open_configured(described, about.split, root)
    try:
        return replace(data, corruption=Corruption.parse(corrupted)) if corrupted else data
    except ValueError as error:
        raise ConfigError("the report's data.corruption is unknown", why=str(error)) from error


def _saved(report: ReportFile, data: SegmentationSet, folder: Path, observer: TerminalObserver) -> Source:
    from dgmn2cli.data.images import MAX_PIXELS
    from dgmn2cli.evaluate.engine import saved_source

    used = replace(data, pairs=data.pairs[: len(report.certificate.records)])
    looked = report.certificate.records[0].boundary is not None
    return saved_source(folder, used, workers=1, max_pixels=MAX_PIXELS, observer=observer, analysis=looked)


def _recipe(
    session: Session, report: ReportFile, model: str | None, checkpoint: Path | None, device: str | None
) -> AnyRecipe:
    """What made the report's predictions, the weights where it says they are unless they are named."""
    from dgmn2cli.evaluate.verify import settings_of
    from dgmn2cli.inference.settings import LoadOptions

    run, stated = report.run, Path(report.run.checkpoint)
    if checkpoint is None and stated.is_file():
        checkpoint = stated
    exact, ema = run.form != "published", run.weights.endswith("ema")
    load = LoadOptions(checkpoint, device or run.device, run.dtype, run.backend, exact_algebra=exact, ema=ema)
    network = protocol.NetworkOptions(load, run.runtime, Path(run.graph) if run.graph else None, None)
    name = model or _model_of(session, report, checkpoint or stated)
    return protocol.recipe_of(session, name, network, settings_of(report))


def _network(
    session: Session,
    report: ReportFile,
    data: SegmentationSet,
    recipe: AnyRecipe,
    device: str | None,
    observer: TerminalObserver,
) -> Source:
    from dgmn2cli.evaluate.engine import network_source
    from dgmn2cli.evaluate.published import known_hash
    from dgmn2cli.evaluate.verify import settings_of
    from dgmn2cli.inference.load import Recipe

    published = isinstance(recipe, Recipe) and recipe.options.checkpoint is None
    if published and known_hash(recipe.entry, session.cache) != report.run.sha256:
        why = "the file is not there, and its weights are not the published ones"
        hint = "Name it with --checkpoint FILE."
        raise ConfigError("cannot run the report's model", where=report.run.checkpoint, why=why, hint=hint)
    segmenter = recipe(device=device or report.run.device, observer=observer)
    looked = report.certificate.records[0].boundary is not None
    return network_source(segmenter, data, settings_of(report), observer=observer, analysis=looked)


def _model_of(session: Session, report: ReportFile, checkpoint: Path) -> str:
    """The report's model; where that is none of the zoo's, the configuration in the run folder of a training."""
    from dgmn2cli.training.folder import RunFolder

    name = report.run.model
    if report.run.graph or name in {entry.key for entry in session.zoo().segmentors}:
        return name
    folders = (checkpoint.absolute().parent.parent, report.path.absolute().parent)
    configurations = [folder.config for folder in map(RunFolder, folders) if folder.config.is_file()]
    if not configurations:
        hint = "Name its configuration with -m FILE."
        raise ConfigError("the report's model is none of the zoo's", where=shown(name), hint=hint)
    return str(configurations[0])


def _table(answer: Verification) -> RenderableType:
    images = "1 image" if answer.images == 1 else f"{answer.images} images"
    again = f"{100 * answer.mean_iou:.2f} % of {short_name(answer.model)}, again from the counts of {images}"
    rows = [("report", f"{answer.report} holds"), ("mIoU", again)]
    return render.record_table(
        [*rows, ("run again", f"{', '.join(answer.run_again)}: the same matrices on {answer.device}")]
    )
