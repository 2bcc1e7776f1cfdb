"""`dgmn2 eval`: measure a model, or the whole zoo, on a labelled data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import RenderableType
from rich.text import Text

from dgmn2cli.cli import protocol, render
from dgmn2cli.cli.options import (
    OUTPUT_FILE,
    PATH,
    NumberType,
    ParsedType,
    Session,
    command_line,
    gpus_option,
    model_argument,
    model_typed,
    pass_session,
)

if TYPE_CHECKING:
    from dgmn2cli.data.corruption import Corruption
    from dgmn2cli.evaluate import EvalReport
    from dgmn2cli.evaluate.run import ZooReport
    from dgmn2cli.inference.plan import Settings
    from dgmn2cli.zoo import Zoo


def _parse_corruption(text: str) -> Corruption:
    from dgmn2cli.data.corruption import Corruption

    return Corruption.parse(text)


@click.command("eval")
@model_argument
@protocol.with_data("val")
@protocol.dataset_option
@click.option(
    "--corrupt",
    type=ParsedType("corruption", _parse_corruption),
    metavar="KIND:LEVEL,...",
    help="Corrupt the images first, such as fog:3: fog, night, blur, noise, jpeg; levels 1 to 5.",
)
@protocol.with_settings
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Evaluate the first N images only: a partial run.")
@gpus_option
@click.option(
    "--report", type=OUTPUT_FILE, metavar="FILE", help="Write the JSON report here; its journal lies beside it."
)
@click.option("--resume", is_flag=True, help="Go on from the journal of an interrupted run with the same --report.")
@click.option(
    "--html", type=OUTPUT_FILE, metavar="FILE", help="Write a page with everything found: one file, no network."
)
@click.option("--csv", type=PATH, metavar="DIR", help="Write classes.csv and images.csv here.")
@click.option(
    "--from", "predictions", type=PATH, metavar="DIR", help="Evaluate the predictions in this folder; no model runs."
)
@click.option("--no-analysis", is_flag=True, help="Only count: no boundary IoU, calibration, instances, crops.")
@click.option("--save-preds", type=PATH, metavar="DIR", help="Keep the predictions as PNGs: trainIds, and labelIds.")
@click.option("--official", is_flag=True, help="Also score with cityscapesScripts, and show the difference.")
@click.option("--check", is_flag=True, help="Exit 1 unless the published figure is met; a partial run has no verdict.")
@click.option(
    "--tolerance",
    type=NumberType(0, 100),
    default=0.1,
    metavar="F",
    help="How far from the published mIoU --check lets it be, in percentage points.",
)
@click.option("--all", "everything", is_flag=True, help="Evaluate every zoo model whose weights are on disk.")
@protocol.workers_option
@protocol.with_network
@pass_session
def evaluate(
    session: Session,
    model: str,
    data: protocol.DataOptions,
    dataset: str | None,
    corrupt: Corruption | None,
    settings: Settings,
    limit: int | None,
    gpus: int,
    report: Path | None,
    resume: bool,
    html: Path | None,
    csv: Path | None,
    predictions: Path | None,
    no_analysis: bool,
    save_preds: Path | None,
    official: bool,
    check: bool,
    tolerance: float,
    everything: bool,
    workers: int,
    network: protocol.NetworkOptions,
) -> None:
    """Measure MODEL on a labelled split: IoU and accuracy of each class, their means, the published figure beside it.

    A run with --report that was killed goes on with --resume, to the same result. Partial runs, other data, other
    weights and other procedures get no comparison with the published figure, and the reason is shown.
    """
    if not everything and not predictions:
        protocol.refuse_offline(session, model, network.graph or network.load.checkpoint)
    from dgmn2cli.cli.progress import TerminalObserver
    from dgmn2cli.distributed.group import launched_rank
    from dgmn2cli.evaluate import run
    from dgmn2cli.evaluate.official import require_agreement
    from dgmn2cli.evaluate.published import require_verdicts
    from dgmn2cli.evaluate.request import EvalRequest, open_data

    zoo, context = session.zoo(), click.get_current_context()
    recipe = None if everything or predictions else protocol.recipe_of(session, model, network, settings)
    root, split, described = protocol.data_of(recipe, data)
    if dataset is not None:
        root, split = protocol.preset_of(dataset, data)
    request = EvalRequest(
        root, split, described, settings, limit, network.load.device, gpus, workers, network.threads, report, resume,
        save_preds, official, tolerance, network.load.compiled, session.cache, analysis=not no_analysis,
        predictions=predictions, html=html, csv=csv, command=command_line(context),
        dataset=dataset or "", corruption=corrupt,
    )  # fmt: skip
    if everything:
        _refuse_one_model(context)
    elif predictions:
        protocol.refuse_network("--from needs no model")
    if everything and (html or csv or predictions):
        raise click.UsageError("--html, --csv and --from are for one evaluation: leave out --all", context)
    if predictions and (save_preds or official):
        raise click.UsageError("--save-preds and --official are for a model: leave out --from", context)
    with TerminalObserver(session) as observer:
        if predictions:
            open_data(request, [])
            single = run.run(request, observer=observer)
        elif recipe is None:
            found, missing = protocol.on_disk(session, zoo, protocol.load_options(session, network, settings))
            answer = run.run_zoo(request, found, missing, observer)
        else:
            open_data(request, [recipe.inference])  # refused before a download, if at all
            protocol.require_weights(session, recipe, network)
            single = run.run(request, recipe, observer)
    if launched_rank() > 0:  # of those that torchrun started the first one speaks
        return
    if everything:
        render.emit(session, answer, lambda: _zoo_table(answer, zoo, settings.ms_flip))
        run.require_all_sound(answer)
        reports = list(answer.reports)
    else:
        render.emit(session, single, lambda: _report_tables(single))
        reports = [single]
    for official_scores in filter(None, (one.official for one in reports)):
        require_agreement(official_scores)
    if check:
        require_verdicts(reports)


def _refuse_one_model(context: click.Context) -> None:
    if model_typed() or context.params.get("checkpoint") or context.params.get("graph"):
        why = "--all evaluates every model on disk: name no model, no checkpoint and no graph"
        raise click.UsageError(why, context)


def _share(value: float) -> str:
    """A fraction in percent, two digits; `n/a` where it is not defined."""
    return "n/a" if math.isnan(value) else f"{100 * value:.2f}"


def _report_tables(report: EvalReport) -> list[RenderableType]:
    """The classes, the groups, and the figures."""
    scores = report.scores
    title = f"PARTIAL: {report.data.images} of {report.data.of} images" if report.partial else None
    right = ("IoU, %", "accuracy, %", "pixels")
    classes = render.make_table("class", *right, right=right, title=title)
    for entry in scores.classes:
        classes.add_row(entry.name, _share(entry.iou), _share(entry.accuracy), f"{entry.labelled:,}")
    parts: list[RenderableType] = [classes, ""]
    if scores.categories:
        groups = render.make_table("category", "IoU, %", right=("IoU, %",))
        for group in scores.categories:
            groups.add_row(group.name, _share(group.iou))
        parts += [groups, ""]
    if scores.absent:
        names = ", ".join(scores.absent)
        parts.append(Text(f"Not in the labels, left out of the means unless predicted (then IoU 0): {names}"))
    return [*parts, render.record_table([*_figures(report), *_verdict(report), *_about(report)])]


def _figures(report: EvalReport) -> list[tuple[str, str]]:
    scores = report.scores
    rows = [("aAcc", scores.pixel_accuracy), ("mIoU", scores.mean_iou), ("mAcc", scores.mean_accuracy)]
    rows += [("category mIoU", scores.mean_category_iou)] if scores.categories else []
    if report.analysis.boundary is not None:
        rows.append(("boundary mIoU", report.analysis.boundary.mean_iou))
    if report.analysis.instances is not None:
        rows.append(("iIoU", report.analysis.instances.mean_iiou))
    texts = {name: f"{_share(value)} %" for name, value in rows}
    low, high = report.analysis.intervals.mean_iou
    level = 100 * report.analysis.intervals.level
    texts["mIoU"] += f", {level:.0f} % interval {_share(low)} to {_share(high)}" if report.data.images > 1 else ""
    if report.analysis.calibration is not None:
        found = report.analysis.calibration
        texts["calibration"] = f"ECE {_share(found.ece)} %, fitted temperature {found.temperature:.2f}"
    return list(texts.items())


def _verdict(report: EvalReport) -> list[tuple[str, str]]:
    rows = _named_once("no comparison", report.no_comparison)
    if report.comparison is not None:
        found = report.comparison
        rows += [("published", f"{found.published:.2f} %"), ("difference", f"{found.difference:+.2f}")]
    if report.official is not None:
        official = report.official
        rows.append(("cityscapesScripts", f"{_share(official.mean_iou)} %, version {official.version}"))
        rows.append(("difference", f"{official.difference:.12f} at most, over classes, categories and means"))
    return rows


def _named_once(name: str, values: Sequence[str]) -> list[tuple[str, str]]:
    return [("" if index else name, value) for index, value in enumerate(values)]


def _about(report: EvalReport) -> list[tuple[str, str]]:
    run, data = report.run, report.data
    weights = f", sha256 {run.sha256[:12]}" if run.sha256 else ""
    many = f", {report.processes} processes" if report.processes > 1 else ""
    return [
        ("images", f"{data.images} of {data.of} in split {data.split} of {data.root}"),
        *data.remarks(),
        *([("procedure", str(report.protocol))] if report.protocol is not None else []),
        ("model", f"{run.title} ({'from files' if run.form == 'files' else f'{run.precision}, {run.form}'}){weights}"),
        ("ran", f"{report.seconds:.1f} s on {run.device_name}, {run.engine}{many}"),
    ]


def _zoo_table(report: ZooReport, zoo: Zoo, ms_flip: bool) -> list[RenderableType]:
    """The published table with measured columns; models not on disk have none."""
    kind = "ms+flip" if ms_flip else "mIoU"
    headings = (f"published\n{kind}", f"measured\n{kind}", "difference")
    partial = next((r.data for r in report.reports if r.partial), None)
    title = f"PARTIAL: {partial.images} of {partial.of} images" if partial else None
    table = render.make_table("key", "head", "backbone", *headings, "", right=headings, whole=("key",), title=title)
    by_model = {entry.run.model: entry for entry in report.reports}
    failed = {failure.model for failure in report.failures}
    for entry in zoo.segmentors:
        found = by_model.get(entry.key)
        measured = _share(found.scores.mean_iou) if found else render.MISSING
        comparison = found.comparison if found else None
        difference = f"{comparison.difference:+.2f}" if comparison else render.MISSING
        state = "not on disk" if entry.key in report.missing else "failed" if entry.key in failed else ""
        published = render.percent(entry.miou_ms_flip if ms_flip else entry.miou)
        names = (entry.key, entry.head, entry.backbone.removeprefix("dgmn2_"))
        table.add_row(*names, published, measured, difference, state)
    reasons = list(dict.fromkeys(reason for found in report.reports for reason in found.no_comparison))
    rows = _named_once("no comparison", reasons)
    if report.reports:
        rows += _about(report.reports[0])[:2]
    return [table, "", render.record_table(rows)]
