"""What the records of all images say together: images and classes ranked, figures with intervals, confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgmn2cli.evaluate.analysis import calibration
from dgmn2cli.evaluate.analysis.bootstrap import Intervals, intervals, iou_in_images, iou_of, nan_mean, parts_of
from dgmn2cli.evaluate.analysis.boundary import RADII, Boundary, TrimapPoint, boundary_width
from dgmn2cli.evaluate.analysis.calibration import BINS, Calibration
from dgmn2cli.evaluate.analysis.counts import from_text
from dgmn2cli.evaluate.analysis.crops import Box
from dgmn2cli.evaluate.analysis.instances import InstanceScores, instance_scores
from dgmn2cli.evaluate.analysis.measure import ImageRecord, TemperatureCounts

LISTED = 20  # entries of a list of the worst
WORST_SHARES = (5, 1)  # percent of the images, of the worst-case figures


@dataclass(frozen=True)
class ImageScores:
    """One image; fractions from 0 to 1, NaN where it has no label."""

    name: str  # the image's
    pixel_accuracy: float  # share of the labelled pixels that are right
    mean_iou: float  # over the classes that its label has
    doubt: float | None  # one minus the mean confidence; None where it is not known
    classes: dict[str, float]  # IoU of each class that is in its label or its prediction
    worst: Box | None  # the part in which most pixels are wrong; None where it was not looked for


@dataclass(frozen=True)
class Confused:
    """One class taken for another: pixels, their share of the class's pixels and of all errors, images with most."""

    label: str
    prediction: str
    pixels: int
    label_share: float
    error_share: float
    images: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """What an evaluation tells beyond its mean IoU."""

    intervals: Intervals  # of the mean IoU and of each class's
    images: tuple[ImageScores, ...]  # in the data set's order
    # mIoU-D (the mean IoU of the set), mIoU-I (mean over the images of each image's mean over its classes), mIoU-C
    # (mean over the classes of each class's mean over its images); with q, 5 or 1 behind them over the worst images
    # only: the mean of the figures for the worst 10, 20, ..., 100 %, for 5 %, for 1 %. Source: Wang et al. 2023, arXiv
    # 2310.19252.
    fine_grained: dict[str, float]
    confusions: tuple[Confused, ...]  # the most frequent first
    worst_images: tuple[str, ...]  # names, the lowest mean IoU first
    doubtful_images: tuple[str, ...]  # names, the most doubtful first; empty where no confidence is known
    # boundary, calibration, instances: None where not measured
    boundary: Boundary | None
    calibration: Calibration | None
    instances: InstanceScores | None
    not_measured: dict[str, str]  # why not, by name


def analyse(records: Sequence[ImageRecord], classes: tuple[str, ...], temperatures: TemperatureCounts) -> Analysis:
    """The analysis of a set of at least one image.

    Args:
        records: in the data set's order.
        classes: N names.
        temperatures: the sum over all images.

    Raises:
        ValueError: the records do not fit the classes.
    """
    matrices = np.stack([record.matrix(len(classes)) for record in records])
    parts = parts_of(matrices)
    images = _image_scores(records, parts, matrices.sum((1, 2)), classes)
    measured = records[0].boundary is not None
    skipped = "the analysis was switched off"
    reasons, calibrated, instances = {}, None, None
    if not measured:
        reasons = dict.fromkeys(("boundary", "calibration", "instances"), skipped)
    else:
        calibrated, instances = _calibration(records, temperatures), _instances(records, matrices.sum(0))
        if calibrated is None:
            reasons["calibration"] = "predictions from files have no confidence"
        if instances is None:
            there = sum(record.instances is not None for record in records)
            reasons["instances"] = f"{there} of {len(records)} images have a usable instance map"
    return Analysis(
        intervals=intervals(parts, classes),
        images=images,
        fine_grained=fine_grained(parts),
        confusions=_confusions(matrices, records, classes),
        worst_images=_first([(image.mean_iou, image.name) for image in images]),
        doubtful_images=_first([(-image.doubt, image.name) for image in images if image.doubt is not None]),
        boundary=_boundary(records, classes, matrices.sum(0)) if measured else None,
        calibration=calibrated,
        instances=instances,
        not_measured=reasons,
    )


def _first(ranked: list[tuple[float, str]]) -> tuple[str, ...]:
    """The names with the lowest ranks; equal ones keep their order, and those without a rank are left out."""
    known = [entry for entry in ranked if entry[0] == entry[0]]
    return tuple(name for _, name in sorted(known, key=lambda entry: entry[0])[:LISTED])


def _image_scores(
    records: Sequence[ImageRecord], parts: np.ndarray, labelled: np.ndarray, classes: tuple[str, ...]
) -> tuple[ImageScores, ...]:
    iou, means = iou_of(parts), nan_mean(iou_in_images(parts))
    with np.errstate(invalid="ignore"):
        accuracy = parts[:, 0].sum(1) / labelled
    return tuple(
        ImageScores(
            name=record.name,
            pixel_accuracy=float(accuracy[i]),
            mean_iou=float(means[i]),
            doubt=record.doubt,
            classes={name: float(iou[i, c]) for c, name in enumerate(classes) if not np.isnan(iou[i, c])},
            worst=record.worst,
        )
        for i, record in enumerate(records)
    )


def fine_grained(parts: np.ndarray) -> dict[str, float]:
    """The published families of mean IoUs, by name; see `Analysis`.

    Args:
        parts: (n, 3, N), as `parts_of` gives. A class counts in an image where its label has it.
    """
    iou = iou_in_images(parts)
    found = {"mIoU-D": float(nan_mean(iou_of(parts.sum(0))))}
    of_images = nan_mean(iou)
    columns = {"mIoU-I": [of_images[~np.isnan(of_images)]], "mIoU-C": [c[~np.isnan(c)] for c in iou.T]}
    for name, values in columns.items():
        found[name] = _worst(values, 100)
        found[f"{name}q"] = float(np.mean([_worst(values, share) for share in range(10, 101, 10)]))
        found |= {f"{name}{share}": _worst(values, share) for share in WORST_SHARES}
    return found


def _worst(columns: Sequence[np.ndarray], share: int) -> float:
    """The mean over the columns that are not empty of the mean of their lowest `share` percent, at least one value."""
    means = [np.sort(values)[: max(1, share * len(values) // 100)].mean() for values in columns if len(values)]
    return float(np.mean(means)) if means else float("nan")


def _confusions(matrices: np.ndarray, records: Sequence[ImageRecord], classes: tuple[str, ...]) -> tuple[Confused, ...]:
    total, names = matrices.sum(0), (*classes, "no class")
    wrong = total.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    pairs = [(int(i) // len(names), int(i) % len(names)) for i in order if wrong.flat[i]]
    found = []
    for truth, guess in pairs:
        of_images = matrices[:, truth, guess]
        most = [records[int(i)].name for i in np.argsort(-of_images, kind="stable")[:3] if of_images[i]]
        pixels = int(wrong[truth, guess])
        shares = pixels / int(total[truth].sum()), pixels / int(wrong.sum())
        found.append(Confused(names[truth], names[guess], pixels, *shares, tuple(most)))
    return tuple(found)


def _boundary(records: Sequence[ImageRecord], classes: tuple[str, ...], total: np.ndarray) -> Boundary:
    sums = np.sum([from_text(record.boundary or "", (2, len(classes))) for record in records], axis=0)
    near = np.sum([from_text(record.trimap or "", (len(RADII), 2)) for record in records], axis=0)
    errors = int(total.sum() - np.diag(total[:, : len(classes)]).sum())
    with np.errstate(invalid="ignore"):
        iou, accuracy = sums[0] / sums[1], near[:, 1] / near[:, 0]
        shares = (near[:, 0] - near[:, 1]) / np.float64(errors)
    return Boundary(
        mean_iou=float(nan_mean(iou)),
        width=max(boundary_width(*record.size[::-1]) for record in records),
        classes={name: float(value) for name, value in zip(classes, iou, strict=True)},
        trimaps=tuple(
            TrimapPoint(radius, int(near[i, 0]), float(accuracy[i]), float(shares[i])) for i, radius in enumerate(RADII)
        ),
        interior_error_share=float(1 - shares[-1]),
    )


def _calibration(records: Sequence[ImageRecord], temperatures: TemperatureCounts) -> Calibration | None:
    if any(record.confidence is None for record in records):
        return None
    counts = np.sum([from_text(record.confidence or "", (3, BINS)) for record in records], axis=0)
    return calibration.summarize(counts, temperatures.losses, temperatures.confidences)


def _instances(records: Sequence[ImageRecord], total: np.ndarray) -> InstanceScores | None:
    found = [record.instances for record in records if record.instances is not None]
    return instance_scores(found, total) if len(found) == len(records) else None
