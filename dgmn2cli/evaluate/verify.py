"""Whether a report holds: its figures computed again from its records, its files hashed, a sample run again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.errors import CheckFailed
from dgmn2cli.evaluate.analysis.measure import ImageRecord
from dgmn2cli.evaluate.analysis.summary import analyse
from dgmn2cli.evaluate.certificate import digest_of, fingerprint_of, sample, sampled
from dgmn2cli.evaluate.counting import compute_scores
from dgmn2cli.evaluate.engine import Source
from dgmn2cli.evaluate.reading import ReportFile
from dgmn2cli.evaluate.report import DataInfo
from dgmn2cli.files import to_plain
from dgmn2cli.inference.plan import Settings
from dgmn2cli.observer import Observer, Silent

CLOSE = 1e-9  # relative; another NumPy may add floats in another order
_SAMPLED_ALIKE = ("name", "size", "label_hash", "confusion", "boundary", "trimap", "instances", "worst")


@dataclass(frozen=True)
class Verification:
    """A report that holds: how many images it is about, those that were run again, and on what."""

    report: Path
    model: str
    mean_iou: float
    images: int
    run_again: tuple[str, ...]
    device: str


def verify(report: ReportFile, data: SegmentationSet, source: Source, observer: Observer = Silent()) -> Verification:
    """Checks a report, the cheapest first.

    Args:
        data: the images it says it is about, in their order.
        source: what makes the predictions it says it is about.

    Raises:
        CheckFailed: something differs; the first difference is named.
        Dgmn2Error: an image cannot be read, the network fails.
    """
    mean_iou = check_figures(report)
    check_data(report, data)
    check_source(report, source)
    check_digest(report)
    records = report.certificate.records
    places = sampled(len(records), report.certificate.seed)
    observer.begin("verifying", len(places))
    with closing(source.images(places)) as images:
        for found in images:
            _check_image(report, records[found.index], found.measured.record)
            observer.result(found)
    return Verification(
        report=report.path,
        model=report.run.model,
        mean_iou=mean_iou,
        images=len(records),
        run_again=tuple(records[place].name for place in places),
        device=source.run.device_name,
    )


def settings_of(report: ReportFile) -> Settings:
    """The settings that give the report's procedure; those of a report without one if it has none."""
    protocol = report.protocol
    if protocol is None:
        return Settings()
    return Settings(
        ms_flip=len(protocol.ratios) > 1 or protocol.flip,
        scale=protocol.scale,
        window=protocol.window,
        stride=protocol.stride,
        protocol=protocol.name,
        window_batch=protocol.window_batch,
    )


def check_figures(report: ReportFile) -> float:
    """Computes every figure again from the records; gives the mean IoU.

    Raises:
        CheckFailed: one differs.
    """
    plain, held, counts = report.plain, report.certificate, report.matrices.sum(0)
    scores, total = compute_scores(counts, held.classes, held.categories), len(held.records)
    try:
        analysis = analyse(held.records, held.classes, report.temperatures)
    except ValueError as error:
        why = f"certificate.records: {error}"
        raise CheckFailed("the report does not hold", where=report.path, why=why) from error
    figures = {"scores": scores, "confusion": counts, **vars(analysis), "partial": total < report.data.of}
    for name, value in figures.items():
        _same(report, plain.get(name), value, name, "its records give")
    _same(report, report.data.images, total, "data.images", "it has")
    names = [held.records[place].name for place in sampled(total, held.seed)]
    _same(report, [image.name for image in held.sample], names, "certificate.sample", "its seed draws")
    fingerprint = fingerprint_of(held.classes, held.records)
    _same(report, held.fingerprint, fingerprint, "certificate.fingerprint", "its records give")
    if isinstance(plain.get("comparison"), dict):
        measured = plain["comparison"].get("measured")
        _same(report, measured, 100 * scores.mean_iou, "comparison.measured", "its records give")
    return scores.mean_iou


def check_data(report: ReportFile, data: SegmentationSet) -> None:
    """Compares names, classes, and the sampled files.

    Raises:
        CheckFailed: one differs.
    """
    held, count, about = report.certificate, len(report.certificate.records), DataInfo.of_set(data, len(data))
    _same(report, held.classes, data.classes, "certificate.classes", "the data set has")
    found = replace(about, root=report.data.root, images=count, sizes=report.data.sizes, sha256=report.data.sha256)
    _same(report, report.data, found, "data", "the data set has")
    names = [pair.name for pair in data.pairs[:count]]
    _same(report, [record.name for record in held.records], names, "certificate.records", "the data set has")
    _same(report, held.sample, sample(data, count, held.seed), "certificate.sample", "the files have")


def check_source(report: ReportFile, source: Source) -> None:
    """Compares what makes the predictions now with what made them.

    Raises:
        CheckFailed: it differs.
    """
    names = ["model", "sha256", "dtype", "form", "backend", "runtime", "graph_sha256"]
    names += ["weights"] if report.run.weights else []  # a training's own evaluation names no entry of a file
    found = replace(report.run, **{name: getattr(source.run, name) for name in names})
    _same(report, report.run, found, "run", "here it is")
    _same(report, report.protocol, source.protocol, "protocol", "the settings give")


def check_digest(report: ReportFile) -> None:
    """Raises CheckFailed where anything in the report was changed since it was written."""
    written, found = report.plain["certificate"].get("digest"), digest_of(report.plain)
    _same(report, written, found, "certificate.digest", "its content has")


def _check_image(report: ReportFile, old: ImageRecord, new: ImageRecord) -> None:
    for name in _SAMPLED_ALIKE if old.boundary is not None else _SAMPLED_ALIKE[:4]:
        _same(report, getattr(old, name), getattr(new, name), f"image {old.name}: {name}", "run again it is")


def _same(report: ReportFile, old: Any, new: Any, where: str, how: str) -> None:
    """Raises CheckFailed where two values differ as JSON, naming the first place."""
    for place, before, now in _differences(to_plain(old), to_plain(new), where):
        hint = "The report was changed, or data, weights, device or libraries are others than when it was made."
        if place == "run.model":
            hint += " Name a configuration of your own with -m FILE."
        why = f"{place}: the report has {_shown(before)}, {how} {_shown(now)}"
        raise CheckFailed("the report does not hold", where=report.path, why=why, hint=hint)


def _differences(old: Any, new: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if key in old and key in new:
                yield from _differences(old[key], new[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}", old.get(key), new.get(key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, now, f"{where}[{i}]")
    elif isinstance(old, float) and isinstance(new, float):
        if not math.isclose(old, new, rel_tol=CLOSE, abs_tol=1e-12):
            yield where, old, new
    elif type(old) is not type(new) or old != new:
        yield where, old, new


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
