"""Owns a whole `eval` run: one model or the zoo, from the checked data to the report on disk."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.loaders import eval_indices
from dgmn2cli.distributed.group import devices_for
from dgmn2cli.errors import Dgmn2Error, IntegrityError, NonFiniteError, ResourceError
from dgmn2cli.evaluate.collective import Place, joined, raise_together, torchrun_place
from dgmn2cli.evaluate.engine import PredictionFolder, evaluate, follow, report_of, require_same_classes
from dgmn2cli.evaluate.official import official_scores
from dgmn2cli.evaluate.published import judged
from dgmn2cli.evaluate.ranks import Crew, Ready, Solo, Task
from dgmn2cli.evaluate.report import EvalReport, protocol_in_force
from dgmn2cli.evaluate.request import EvalData, EvalRequest, Stage, prepare
from dgmn2cli.evaluate.subject import LoadNetwork, Subject, run_identity
from dgmn2cli.evaluate.tally import Journal, Tally, start_tally
from dgmn2cli.files import atomic_write, to_json
from dgmn2cli.runtime import set_threads


@dataclass(frozen=True)
class ModelFailure:
    """A model of the zoo that could not be evaluated, and why."""

    model: str
    why: str


@dataclass(frozen=True)
class ZooReport:
    """The result of evaluating every model on disk.

    Attributes:
        reports: one for each model, in the zoo's order.
        missing: keys of the models whose weights are not on disk.
        failures: models whose file is damaged or gives no finite numbers.
    """

    reports: tuple[EvalReport, ...]
    missing: tuple[str, ...]
    failures: tuple[ModelFailure, ...]


def run(request: EvalRequest, subject: Subject, stage: Stage) -> EvalReport:
    """Evaluates one network; writes the report, then removes the journal.

    Raises:
        Dgmn2Error: settings, data set or network are at fault, the journal is another run's, a process died.
    """
    prepared = prepare(request, [subject], stage)
    journal = journal_path(request.report) if request.report is not None else None
    report = _evaluated(request, subject, prepared, stage, journal)
    _finish(request.report, report, [journal] if journal is not None else [])
    return report


def run_zoo(request: EvalRequest, subjects: Sequence[Subject], missing: Sequence[str], stage: Stage) -> ZooReport:
    """Evaluates the networks one after the other; a damaged one is noted and the others are done.

    Predictions are kept in one subfolder for each model; journals stay until all models are done.

    Raises:
        Dgmn2Error: as `run`, but for damaged models.
    """
    prepared = prepare(request, subjects, stage)
    reports, failures, journals = [], [], []
    for subject in subjects:
        journal = journal_path(request.report, subject.name) if request.report is not None else None
        folder = request.save_preds / subject.name if request.save_preds is not None else None
        try:
            reports.append(_evaluated(replace(request, save_preds=folder), subject, prepared, stage, journal))
        except (IntegrityError, NonFiniteError) as error:
            failures.append(ModelFailure(subject.name, str(error)))
        if journal is not None:
            journals.append(journal)
    report = ZooReport(tuple(reports), tuple(missing), tuple(failures))
    _finish(request.report, report, journals)
    return report


def on_disk(networks: Sequence[LoadNetwork]) -> tuple[list[Subject], list[str]]:
    """Those of the zoo's networks whose weights are in the cache, and the names of the others.

    Raises:
        ResourceError: there is none.
    """
    subjects = [network.subject() for network in networks if network.on_disk()]
    if not subjects:
        hint = "Get some with `dgmn2 download KEY`, or all with `dgmn2 download --all`."
        raise ResourceError("no model's weights are on disk", hint=hint)
    return subjects, [network.name for network in networks if not network.on_disk()]


def journal_path(report: Path, model: str = "") -> Path:
    """Where the journal of an evaluation lies while it runs."""
    return report.with_name(f"{report.name}{f'.{model}' if model else ''}.journal")


def speaks() -> bool:
    """Whether this process writes reports and answers; of those that torchrun started only the first does."""
    place = torchrun_place()
    return place is None or place.rank == 0


def _finish(path: Path | None, report: EvalReport | ZooReport, journals: Sequence[Path]) -> None:
    if path is not None and speaks():
        atomic_write(path, to_json(report) + "\n")
    for journal in journals:
        journal.unlink(missing_ok=True)


def _evaluated(
    request: EvalRequest, subject: Subject, prepared: EvalData, stage: Stage, journal: Path | None
) -> EvalReport:
    """One network's report, with the published and the official figures where they belong."""
    data = prepared.data
    with _predictions(request, data) as keep:
        report = _counted(request, subject, prepared, keep, stage, journal)
        if request.official and keep is not None:
            files = [keep.targets(pair.name)[-1] for pair in data.pairs]
            report = replace(report, official=official_scores(data, files, report.scores))
    return judged(report, data, subject.entry, subject.known_sha256, request.tolerance)


@contextmanager
def _predictions(request: EvalRequest, data: SegmentationSet) -> Iterator[PredictionFolder | None]:
    """Where predictions are kept: the user's folder, a temporary one for the official tool, or nowhere."""
    if request.save_preds is not None:
        yield PredictionFolder.of(request.save_preds, data)
    elif request.official:
        with tempfile.TemporaryDirectory(prefix="dgmn2-eval-") as folder:
            yield PredictionFolder.of(folder, data)
    else:
        yield None


def _counted(
    request: EvalRequest,
    subject: Subject,
    prepared: EvalData,
    keep: PredictionFolder | None,
    stage: Stage,
    journal: Path | None,
) -> EvalReport:
    """The bare report: the network loaded, on one process or several, and every picture counted once."""
    place = torchrun_place()
    if place is not None:
        return _shared(request, subject, prepared, keep, stage, place)
    data, devices = prepared.data, devices_for(request.device, request.gpus)
    threads = max(1, set_threads(request.threads) // len(devices))
    task = Task(subject.load, data, request.settings, request.workers, keep, threads, list(warnings.filters))
    with Solo(task, devices[0]) if len(devices) == 1 else Crew(task, devices) as force:
        ready = force.ready()
        tally = _tally(request, subject, prepared, ready, journal)
        done = tuple(tally.done)
        watch = stage.evaluating(subject.name, len(data), len(done))
        shares = [eval_indices(len(data), rank, len(devices), done) for rank in range(len(devices))]
        with closing(force.count(shares, watch.part)) as pictures:
            follow(pictures, tally, watch)
    protocol = protocol_in_force(request.settings, subject.inference)
    return report_of(ready.info, protocol, prepared.info, data, tally, processes=len(devices), resumed=len(done))


def _shared(
    request: EvalRequest,
    subject: Subject,
    prepared: EvalData,
    keep: PredictionFolder | None,
    stage: Stage,
    place: Place,
) -> EvalReport:
    """The bare report of all that torchrun started, on each of them."""
    set_threads(request.threads)
    with joined():
        segmenter, failure = None, None
        try:
            segmenter = subject.load(place.device(request.device))
        except Dgmn2Error as error:
            failure = error
        raise_together(failure)
        assert segmenter is not None
        shard, folder = (place.rank, place.world), keep.folder if keep is not None else None
        watch = stage.evaluating(subject.name, len(eval_indices(len(prepared.data), *shard)), 0)
        report = evaluate(
            segmenter,
            prepared.data,
            request.settings,
            shard=shard,
            workers=request.workers,
            save_preds=folder,
            watch=watch,
        )
    return replace(report, data=prepared.info, partial=prepared.info.partial)


def _tally(request: EvalRequest, subject: Subject, prepared: EvalData, ready: Ready, path: Path | None) -> Tally:
    """From zero, or from where the journal of an interrupted run says."""
    data = prepared.data
    require_same_classes(ready.classes, data)
    journal = None
    if path is not None:
        protocol = protocol_in_force(request.settings, subject.inference)
        identity = run_identity(ready.info, protocol, prepared.info, subject, request.save_preds)
        journal = Journal(path, identity, request.journal_every)
    return start_tally(len(data.classes), len(data), journal, resume=request.resume)


def require_all_sound(report: ZooReport) -> None:
    """Raises IntegrityError where models could not be evaluated."""
    if report.failures:
        raise IntegrityError(
            f"{len(report.failures)} models could not be evaluated",
            faults=[f"{failure.model}: {failure.why}" for failure in report.failures],
            hint="The others were evaluated.",
        )
