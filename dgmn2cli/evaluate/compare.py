"""Two reports on the same images, image by image: whether a difference is more than chance, and where it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgmn2cli.errors import ConfigError
from dgmn2cli.evaluate.analysis.bootstrap import (
    LEVEL,
    RESAMPLES,
    SEED,
    Interval,
    interval,
    iou_in_images,
    iou_of,
    nan_mean,
    parts_of,
    resampled,
)
from dgmn2cli.evaluate.certificate import fingerprint_of
from dgmn2cli.evaluate.reading import ReportFile
from dgmn2cli.notebook import table_html
from dgmn2cli.report import html
from dgmn2cli.report.html import percent
from dgmn2cli.zoo import short_name


@dataclass(frozen=True)
class Compared:
    """One of the two: its file, what made its predictions and how, its mean IoU (a fraction)."""

    report: Path
    model: str
    sha256: str
    procedure: str
    corruption: str  # what was done to the images; empty: nothing
    device: str
    dtype: str
    runtime: str
    mean_iou: float

    @property
    def title(self) -> str:
        """The report's file and its model: two trainings of one model have the same name."""
        return f"{self.report.name} ({short_name(self.model)})"


@dataclass(frozen=True)
class Difference:
    """The second's mean IoU minus the first's, with its interval: paired bootstrap over images."""

    mean_iou: float
    interval: Interval
    level: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class ClassDifference:
    """One class's IoU in both, the second's minus the first's, and its interval; NaN where undefined."""

    name: str
    first: float
    second: float
    difference: float
    interval: Interval


@dataclass(frozen=True)
class ImageDifference:
    """One image's mean IoU in both, and the second's minus the first's; NaN where it has no label."""

    name: str
    first: float
    second: float
    difference: float


@dataclass(frozen=True)
class PairedComparison:
    """Two evaluations of the same images; fractions."""

    # first, second: what is compared
    first: Compared
    second: Compared
    fingerprint: str  # of the images' names, sizes and labels
    difference: Difference  # of the mean IoU
    classes: tuple[ClassDifference, ...]  # in their order
    images: tuple[ImageDifference, ...]  # what got better most first, what got worse most last
    # better, worse, equal, unlabelled: numbers of images; the last have no mean IoU
    better: int
    worse: int
    equal: int
    unlabelled: int

    def _repr_html_(self) -> str:
        low, high = (f"{100 * value:+.2f}" for value in self.difference.interval)
        title = f"{self.second.title} minus {self.first.title}: {100 * self.difference.mean_iou:+.2f} [{low}, {high}]"
        heads = ("class", self.first.report.name, self.second.report.name, "difference")
        rows = [
            (entry.name, percent(entry.first, 2), percent(entry.second, 2), percent(entry.difference, 2))
            for entry in self.classes
        ]
        return table_html(title, heads, rows)

    @property
    def certain(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        low, high = self.difference.interval
        return low > 0 or high < 0


def compare(first: ReportFile, second: ReportFile) -> PairedComparison:
    """Compares two reports.

    Raises:
        ConfigError: they are about other classes, images or labels.
    """
    _require_same_images(first, second)
    pair = np.stack([parts_of(report.matrices) for report in (first, second)], 1)  # (n, 2, 3, N)
    total = iou_of(pair.sum(0))  # (2, N)
    means = nan_mean(total)
    count, classes = len(pair), len(first.certificate.classes)
    samples = np.concatenate(
        [iou_of(sums.reshape(-1, 2, 3, classes)) for sums in resampled(pair.reshape(count, 6, classes))]
    )
    mean_samples, class_samples = np.diff(nan_mean(samples), axis=1)[:, 0], samples[:, 1] - samples[:, 0]
    images = _image_differences(first, pair)
    return PairedComparison(
        first=_compared(first, float(means[0])),
        second=_compared(second, float(means[1])),
        fingerprint=fingerprint_of(first.certificate.classes, first.certificate.records),
        difference=Difference(float(means[1] - means[0]), interval(mean_samples), LEVEL, RESAMPLES, SEED),
        classes=tuple(
            ClassDifference(name, float(a), float(b), float(b - a), interval(class_samples[:, i]))
            for i, (name, a, b) in enumerate(zip(first.certificate.classes, *total, strict=True))
        ),
        images=images,
        better=sum(image.difference > 0 for image in images),
        worse=sum(image.difference < 0 for image in images),
        equal=sum(image.difference == 0 for image in images),
        unlabelled=sum(math.isnan(image.difference) for image in images),
    )


def _require_same_images(first: ReportFile, second: ReportFile) -> None:
    pairs = list(zip(first.certificate.records, second.certificate.records, strict=False))
    why = ""
    if first.certificate.classes != second.certificate.classes:
        why = "their classes are others, or in another order"
    elif len(first.certificate.records) != len(second.certificate.records):
        why = f"one is about {len(first.certificate.records)} images, the other about {len(second.certificate.records)}"
    elif other := next(((a, b) for a, b in pairs if a.name != b.name), None):
        why = f"one is about the image {other[0].name}, the other about {other[1].name}"
    elif other := next(((a, b) for a, b in pairs if (a.size, a.label_hash) != (b.size, b.label_hash)), None):
        why = f"the label of {other[0].name} is not the same"
    if why:
        hint = "Evaluate both on the same split, with the same --limit."
        raise ConfigError("the reports cannot be compared", where=second.path, why=why, hint=hint)


def _compared(report: ReportFile, mean: float) -> Compared:
    run = report.run
    procedure = str(report.protocol or "not known")
    how = procedure, report.data.corruption, run.device_name, run.dtype, run.runtime
    return Compared(report.path, run.model, run.sha256, *how, mean)


def _image_differences(report: ReportFile, pair: np.ndarray) -> tuple[ImageDifference, ...]:
    means = nan_mean(iou_in_images(pair))  # (n, 2)
    found = [
        ImageDifference(record.name, float(a), float(b), float(b - a))
        for record, (a, b) in zip(report.certificate.records, means, strict=True)
    ]
    return tuple(sorted(found, key=lambda image: -image.difference if image.difference == image.difference else 0.0))


def write_comparison_page(path: Path, found: PairedComparison) -> Path:
    """Writes the page of a comparison: one file that needs no network.

    Raises:
        ResourceError: it cannot be written.
    """
    reach = max([0.01, *(abs(v) for c in found.classes for v in (*c.interval, c.difference) if v == v)])
    return html.write_page(path, "compare.html", found=found, reach=reach)
