"""The images of all processes gathered into one report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.loaders import eval_indices
from dgmn2cli.distributed.group import Group
from dgmn2cli.distributed.processes import collect
from dgmn2cli.errors import DistributedError
from dgmn2cli.evaluate.analysis.summary import analyse
from dgmn2cli.evaluate.certificate import certify
from dgmn2cli.evaluate.counting import compute_scores
from dgmn2cli.evaluate.engine import Counted, Source, network_source
from dgmn2cli.evaluate.journal import Tally
from dgmn2cli.evaluate.predictions import PredictionFolder
from dgmn2cli.evaluate.report import DataInfo, EvalReport, versions
from dgmn2cli.inference.plan import Settings
from dgmn2cli.inference.segmenter import Segmenter
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.zoo import short_name


def evaluate_together(
    source: Source,
    data: SegmentationSet,
    about: DataInfo,
    group: Group,
    observer: Observer,
    start: Callable[[], Tally] = Tally,
    command: str = "",
) -> EvalReport:
    """Counts every image, each on one process; the first process's tally gets them all.

    They share nothing and wait for nobody until the end: each hands every image's record to the first one, which adds
    and notes them. So the result is exact for any number of processes, and a killed run goes on where it was.

    Args:
        observer: advanced by 1 for each image, in parts; on the first process for all images, which are results, too.
        start: makes the tally, on the first process; what is in it already is not counted again.

    Returns:
        The report on every process, nothing compared yet.

    Raises:
        Dgmn2Error: what one process raised, on all of them.
        DistributedError: a process is gone.
    """
    tally, name = Tally(), source.run.model

    def begin() -> list[int]:
        nonlocal tally
        tally = start()
        return sorted(tally.records)

    def take(counted: Counted) -> None:
        tally.add(counted.index, counted.measured)
        observer.result(counted)

    def result() -> EvalReport:
        if len(tally.records) < len(data):
            raise DistributedError("an evaluation lost images", why=f"{len(tally.records)} of {len(data)} were counted")
        report = _report(source, data, about, tally)
        return replace(report, processes=group.world, resumed=len(done), command=command)

    done = group.once(begin)
    if done:
        observer.note(f"{short_name(name)}: going on after {len(done)} of {len(data)} images")
    observer.begin(f"evaluating {short_name(name)}", len(data), done=len(done))
    mine = eval_indices(len(data), group.rank, group.world, done)
    try:
        collect(group, lambda: source.images(mine), take, observer)
        return group.once(result)
    finally:
        tally.note()


def _report(source: Source, data: SegmentationSet, about: DataInfo, tally: Tally) -> EvalReport:
    records, counts, seconds = tally.ordered, tally.counts(len(data.classes)), tally.seconds
    return EvalReport(
        run=source.run,
        protocol=source.protocol,
        data=about,
        partial=about.partial,
        scores=compute_scores(counts, data.classes, data.categories),
        confusion=tuple(map(tuple, counts.tolist())),
        analysis=analyse(records, data.classes, tally.temperatures),
        processes=1,
        resumed=0,
        seconds=seconds,
        versions=versions(),
        certificate=certify(data, records, tally.temperatures),
        crops=tally.crops,
        views=tally.views,
        palette=tuple(map(tuple, data.palette.tolist())),
    )


def evaluate(
    segmenter: Segmenter,
    data: SegmentationSet,
    settings: Settings | None = None,
    *,
    group: Group | None = None,
    limit: int | None = None,
    workers: int = 1,
    save_preds: str | Path | None = None,
    observer: Observer = Silent(),
    analysis: bool = True,
) -> EvalReport:
    """Evaluates a network over a data set that was checked before (`data.check`).

    Args:
        settings: the test procedure; the configuration's if None.
        group: processes that share the work; every one must call this, and all get the report of the whole.
        workers: threads that read ahead.
        observer: told of progress between windows; what it raises ends the evaluation, on all processes where it is a
            Dgmn2Error. Each `Counted` image is a result, on the first process.
        analysis: look at boundaries, calibration, instances and crops, too; a few percent of the time on a CPU.

    Raises:
        ConfigError: impossible settings, or the data set has other classes than the network.
        DataError: an image or label cannot be read.
        NonFiniteError: the network gave NaN or infinity.
        DistributedError: another process failed.
    """
    settings, group = settings or Settings(), group or Group(0, 1, segmenter.device)
    used = first(data, limit)
    keep = PredictionFolder.of(save_preds, used) if save_preds is not None else None
    source = network_source(segmenter, used, settings, workers=workers, keep=keep, observer=observer, analysis=analysis)
    return evaluate_together(source, used, DataInfo.of_set(used, len(data)), group, observer).signed()


def first(data: SegmentationSet, limit: int | None) -> SegmentationSet:
    """The first `limit` images of `data`; all if None."""
    return data if limit is None or limit >= len(data) else replace(data, pairs=data.pairs[:limit])
