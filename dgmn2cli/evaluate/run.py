"""A whole `eval` run: one model or the zoo, on one process or many, from the checked data to the report on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.distributed.group import Group
from dgmn2cli.distributed.processes import on_processes
from dgmn2cli.errors import ConfigError, IntegrityError, NonFiniteError
from dgmn2cli.evaluate.engine import Source, network_source, saved_source
from dgmn2cli.evaluate.journal import Journal, Tally, start_tally
from dgmn2cli.evaluate.official import official_scores
from dgmn2cli.evaluate.page import write_report_page, write_tables
from dgmn2cli.evaluate.predictions import PredictionFolder
from dgmn2cli.evaluate.published import compare_with_published, known_hash
from dgmn2cli.evaluate.report import DataInfo, EvalReport
from dgmn2cli.evaluate.request import EvalRequest, prepare
from dgmn2cli.evaluate.together import evaluate_together
from dgmn2cli.files import atomic_write, to_json
from dgmn2cli.folders import temporary_folder
from dgmn2cli.inference.load import Recipe
from dgmn2cli.inference.runtimes import AnyRecipe
from dgmn2cli.inference.segmenter import Segmenter, run_identity
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.zoo import ZooEntry, load_zoo

Result = TypeVar("Result")


@dataclass(frozen=True)
class ModelFailure:
    """A model of the zoo that could not be evaluated, and why."""

    model: str
    why: str


@dataclass(frozen=True)
class ZooReport:
    """The result of evaluating every model on disk."""

    reports: tuple[EvalReport, ...]  # one for each model, in the zoo's order
    missing: tuple[str, ...]  # keys of the models whose weights are not on disk
    failures: tuple[ModelFailure, ...]  # models whose file is damaged or gives no finite numbers


def run(request: EvalRequest, recipe: AnyRecipe | None = None, observer: Observer = Silent()) -> EvalReport:
    """Evaluates one network, or the predictions in `request.predictions`; writes the report, removes the journal.

    Args:
        recipe: makes the network; picklable where there are several processes; None for predictions.
        observer: told of progress; each `Counted` image is a result.

    Raises:
        Dgmn2Error: settings, data set, network or predictions are at fault, the journal is another run's, a process
            died.
    """
    return _on_processes(_run, request, (recipe,), observer)


def run_loaded(request: EvalRequest, segmenter: Segmenter, observer: Observer = Silent()) -> EvalReport:
    """Evaluates a network that is loaded already, on this process; nothing is written.

    Raises:
        Dgmn2Error: settings, data set or network are at fault.
    """
    if isinstance(segmenter.again, Recipe):
        request = replace(request, described=segmenter.again.data)
    prepared = prepare(request, [segmenter.inference], observer)
    entry = next((entry for entry in load_zoo().segmentors if entry.key == segmenter.info.model), None)
    return _evaluated(request, Group(0, 1, segmenter.device), observer, prepared, entry, lambda **_: segmenter)


def run_zoo(
    request: EvalRequest, recipes: Sequence[AnyRecipe], missing: Sequence[str] = (), observer: Observer = Silent()
) -> ZooReport:
    """Evaluates networks one after the other; a damaged one is noted and the others are done.

    Predictions are kept in one subfolder for each model; journals stay until all models are done.

    Raises:
        Dgmn2Error: as `run`, but for damaged models.
    """
    return _on_processes(_run_zoo, request, (recipes, tuple(missing)), observer)


def _on_processes(
    work: Callable[..., Result], request: EvalRequest, arguments: tuple[Any, ...], observer: Observer
) -> Result:
    """Runs `work` here, or on the processes that are asked for, each of which then has one device."""
    how: dict[str, Any] = {"device": request.device, "processes": request.gpus, "threads": request.threads}
    return on_processes(work, (replace(request, gpus=1), *arguments), observer=observer, **how)


def _run(group: Group, observer: Observer, request: EvalRequest, recipe: AnyRecipe | None) -> EvalReport:
    prepared = group.once(partial(prepare, request, [recipe.inference] if recipe else [], observer))
    report = _evaluated(request, group, observer, prepared, recipe.entry if recipe else None, recipe)
    group.once(partial(_finish, request, report, [""]))
    return report


def _run_zoo(
    group: Group, observer: Observer, request: EvalRequest, recipes: Sequence[AnyRecipe], missing: tuple[str, ...]
) -> ZooReport:
    prepared = group.once(partial(prepare, request, [recipe.inference for recipe in recipes], observer))
    reports, failures = [], []
    for recipe in recipes:
        folder = request.save_preds / recipe.name if request.save_preds is not None else None
        own = replace(request, save_preds=folder)
        try:
            reports.append(_evaluated(own, group, observer, prepared, recipe.entry, recipe, recipe.name))
        except (IntegrityError, NonFiniteError) as error:
            failures.append(ModelFailure(recipe.name, str(error)))
    report = ZooReport(tuple(reports), missing, tuple(failures))
    group.once(partial(_finish, request, report, [recipe.name for recipe in recipes]))
    return report


def journal_path(report: Path | None, model: str = "") -> Path | None:
    """Where the journal of an evaluation lies while it runs; nowhere without a report."""
    return None if report is None else report.with_name(f"{report.name}{f'.{model}' if model else ''}.journal")


def _finish(request: EvalRequest, report: EvalReport | ZooReport, models: Sequence[str]) -> None:
    if isinstance(report, EvalReport):
        if request.html is not None:
            write_report_page(request.html, report)
        if request.csv is not None:
            write_tables(request.csv, report)
    if request.report is not None:
        atomic_write(request.report, to_json(report) + "\n")
    for model in models:
        journal = journal_path(request.report, model)
        if journal is not None:
            journal.unlink(missing_ok=True)


def _evaluated(
    request: EvalRequest,
    group: Group,
    observer: Observer,
    prepared: tuple[SegmentationSet, DataInfo],
    entry: ZooEntry | None,
    load: Callable[..., Segmenter] | None,
    part: str = "",
) -> EvalReport:
    """One report: every image counted once, the published and the official figures where they belong.

    Args:
        entry: of the zoo, where the network is in it.
        load: makes the network when called with `device=NAME`; None for predictions from files.
        part: of the run, in the journal's name.
    """
    data, about = prepared
    with _predictions(request, group, data) as keep:
        source = group.together(partial(_source, request, group, observer, data, load, keep))
        start = partial(_start, request, part, source, data, about)
        report = evaluate_together(source, data, about, group, observer, start, request.command)
        if request.official and keep is not None:
            files = [keep.targets(pair.name)[-1] for pair in data.pairs]
            official = group.once(partial(official_scores, data, files, report.scores))
            report = replace(report, official=official)
    return compare_with_published(report, data, entry, known_hash(entry, request.cache), request.tolerance).signed()


def _source(
    request: EvalRequest,
    group: Group,
    observer: Observer,
    data: SegmentationSet,
    load: Callable[..., Segmenter] | None,
    keep: PredictionFolder | None,
) -> Source:
    how: dict[str, Any] = {"workers": request.workers, "observer": observer, "analysis": request.analysis}
    if load is not None:
        return network_source(load(device=str(group.device)), data, request.settings, keep=keep, **how)
    assert request.predictions is not None
    return saved_source(request.predictions, data, max_pixels=request.settings.max_pixels, **how)


def _start(request: EvalRequest, part: str, source: Source, data: SegmentationSet, about: DataInfo) -> Tally:
    """The tally of an evaluation, from where its journal says."""
    path = journal_path(request.report, part)
    journal = Journal(path, _identity(request, source, data, about), request.journal_every) if path else None
    return start_tally(len(data.classes), len(data), journal, resume=request.resume)


@contextmanager
def _predictions(request: EvalRequest, group: Group, data: SegmentationSet) -> Iterator[PredictionFolder | None]:
    """Where predictions are kept: the user's folder, a temporary one for the official tool, or nowhere."""
    if request.save_preds is not None or not request.official:
        yield None if request.save_preds is None else PredictionFolder.of(request.save_preds, data)
        return
    with ExitStack() as stack:
        folder = group.once(lambda: str(stack.enter_context(temporary_folder("dgmn2-eval"))))
        group.together(partial(_require_shared, folder))
        yield PredictionFolder.of(folder, data)


def _require_shared(folder: str) -> None:
    if not os.path.isdir(folder):
        why, hint = "the processes are on several machines", "Add --save-preds DIR, a folder that all see."
        raise ConfigError("--official needs kept predictions", why=why, hint=hint)


def _identity(request: EvalRequest, source: Source, data: SegmentationSet, about: DataInfo) -> dict[str, object]:
    """All that the records (and the kept predictions) depend on, by the names a user knows.

    Where the data lies and how many processes work is not in it: neither changes the records.
    """
    return {
        "model": source.run.model,
        **run_identity(source.run, source.protocol),
        "compiled": request.compiled,
        "split": about.split,
        "classes": list(data.classes),
        "images": about.images,
        "data sha256": about.sha256,
        "meaning of the labels": data.meaning,
        "corruption": about.corruption,
        "analysis": request.analysis,
        "save-preds": str(request.save_preds.absolute()) if request.save_preds is not None else None,
    }


def require_all_sound(report: ZooReport) -> None:
    """Raises IntegrityError where models could not be evaluated."""
    if report.failures:
        raise IntegrityError(
            f"{len(report.failures)} models could not be evaluated",
            faults=[f"{failure.model}: {failure.why}" for failure in report.failures],
            hint="The others were evaluated.",
        )
