"""The comparison with the published figure: made only where both measure the same thing, else the reasons why not.

The published figures are the mean IoU on the Cityscapes val split, 500 images of 2048x1024, by the published test
procedure, in percent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dgmn2cli.config import InferenceConfig
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.errors import CheckFailed
from dgmn2cli.evaluate.report import Comparison, DataInfo, EvalReport
from dgmn2cli.inference.plan import Protocol, Settings, resolve_settings
from dgmn2cli.zoo import ZooEntry, find_cache, locate

VAL_CITIES = {"frankfurt": 267, "lindau": 59, "munster": 174}
VAL_SIZES = {"2048x1024": 500}
TOLERANCE = 0.1  # percent of mean IoU
_COMPARED = ("name", "scale", "window", "stride", "ratios", "flip")


def compare_with_published(
    report: EvalReport, data: SegmentationSet, entry: ZooEntry | None, known_sha256: str | None, tolerance: float
) -> EvalReport:
    """The report with the published figure beside it, or with the reasons why none can be there.

    Args:
        entry: the zoo model; None for a configuration of the user's.
        known_sha256: the hash of its published file, where it is known.
        tolerance: difference in percent that still counts as agreement.
    """
    if report.protocol is None:
        return replace(report, no_comparison=("the predictions are from files",))
    reasons = [*_model(report, entry, known_sha256), *_data(report.data, data), *_procedure(report.protocol)]
    published = None
    if entry is not None:
        multi_scale = len(report.protocol.ratios) > 1
        published = entry.miou_ms_flip if multi_scale else entry.miou
        if published is None:
            reasons.append(f"no figure is published for {entry.key}{' with scales and flips' * multi_scale}")
    if reasons or entry is None or published is None:
        return replace(report, comparison=None, no_comparison=tuple(reasons))
    measured = 100 * report.scores.mean_iou
    difference = measured - published
    within = bool(abs(difference) <= tolerance)  # not so for NaN
    comparison = Comparison(entry.key, published, measured, difference, tolerance, within)
    return replace(report, comparison=comparison, no_comparison=())


def known_hash(entry: ZooEntry | None, cache: Path | None) -> str | None:
    """The hash of the published weights: the manifest's, else the one recorded when they were downloaded."""
    if entry is None or entry.sha256:
        return entry.sha256 if entry else None
    found = locate(entry, find_cache(cache))
    return found.sha256 if found else None


def _model(report: EvalReport, entry: ZooEntry | None, known_sha256: str | None) -> list[str]:
    if entry is None:
        return ["the model is not in the zoo"]
    if known_sha256 is None:
        return ["the hash of the published weights is not known here, so this checkpoint cannot be told to be them"]
    if report.run.graph and not report.run.sha256:
        return ["the graph does not say from which weights it was made"]
    if report.run.sha256 != known_sha256:
        return [f"the checkpoint is not the published one (sha256 {report.run.sha256[:12]}, not {known_sha256[:12]})"]
    return []


def _data(info: DataInfo, data: SegmentationSet) -> list[str]:
    reasons = [f"the images were corrupted ({info.corruption})"] if info.corruption else []
    if info.kind != "cityscapes" or info.split != "val":
        reasons.append(f"the figure is for Cityscapes val, this is split {info.split} of a {info.kind} data set")
    elif info.partial:
        reasons.append(f"the run is partial: {info.images} of {info.of} images")
    else:
        cities = Counter(pair.image.parent.name for pair in data.pairs)
        if cities != VAL_CITIES or (info.sizes and info.sizes != VAL_SIZES):
            reasons.append(
                f"the data is not the Cityscapes val split of 500 images of 2048x1024: it has {info.images} "
                f"images, of {', '.join(sorted(cities)[:3])}{', ...' * (len(cities) > 3)}"
            )
    return reasons


def _procedure(protocol: Protocol) -> list[str]:
    wanted = resolve_settings(Settings(ms_flip=len(protocol.ratios) > 1), InferenceConfig())
    values = {name: (getattr(protocol, name), getattr(wanted, name)) for name in _COMPARED}
    other = [
        f"{name} {_shown(mine)} instead of {_shown(theirs)}"
        for name, (mine, theirs) in values.items()
        if mine != theirs
    ]
    return [f"the test procedure is not the published one: {', '.join(other)}"] if other else []


def _shown(value: object) -> str:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return f"{value[0]}x{value[1]}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def require_verdicts(reports: Sequence[EvalReport]) -> None:
    """Returns if every measured figure agrees with the published one.

    Raises:
        CheckFailed: one does not, or cannot be compared: a check without a verdict has not passed.
    """
    faults = [(report.run.model, fault) for report in reports if (fault := _fault(report))]
    if not faults:
        return
    compared = all(report.comparison is not None for report in reports)
    what = "the measured mIoU is not the published one" if compared else "no verdict is possible"
    hint = "" if compared else "The published figures are for the whole val split, its weights and its procedure."
    if len(reports) == 1:
        raise CheckFailed(what, where=faults[0][0], why=faults[0][1], hint=hint)
    why = f"for {len(faults)} of {len(reports)} models"
    raise CheckFailed(what, why=why, hint=hint, faults=[": ".join(fault) for fault in faults])


def _fault(report: EvalReport) -> str:
    """Why the report does not pass the check; nothing if it does."""
    found = report.comparison
    if found is None:
        return "; ".join(report.no_comparison)
    if found.within:
        return ""
    off = f"off by {found.difference:+.2f}, and {found.tolerance:g} is tolerated"
    return f"{found.measured:.2f} instead of {found.published:.2f}: {off}"
