"""One image measured against its label: the record that a report is computed from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import TypeAdapter

from dgmn2cli.data.dataset import IGNORE, Pair
from dgmn2cli.evaluate.analysis.bootstrap import iou_in_images, nan_mean, parts_of
from dgmn2cli.evaluate.analysis.boundary import boundary_counts, trimap_counts
from dgmn2cli.evaluate.analysis.calibration import (
    BINS,
    TEMPERATURES,
    confidence_counts,
    sampling_step,
    temperature_confidences,
    temperature_losses,
)
from dgmn2cli.evaluate.analysis.counts import from_text, to_text
from dgmn2cli.evaluate.analysis.crops import CROP_TILE, VIEW_TILE, Box, Shown, tiles, worst_box
from dgmn2cli.evaluate.analysis.instances import InstanceCounts, count_instances, read_instances
from dgmn2cli.inference.prediction import mean_doubt


@dataclass(frozen=True)
class ImageRecord:
    """What is kept of one image: whole numbers of pixels, from which every figure of a report follows."""

    name: str  # the image's
    size: tuple[int, int]  # (width, height)
    label_hash: str  # of the label's class ids
    confusion: str  # (N, N + 1) as `counts.to_text` writes it; row: label, column: prediction
    # (2, N), see `boundary_counts`; None where the image was only counted, as for all below
    boundary: str | None = None
    trimap: str | None = None  # (5, 2), see `trimap_counts`
    confidence: str | None = None  # (3, 15), see `confidence_counts`; None where no confidence is known
    doubt: float | None = None  # one minus the mean confidence of all pixels; None where it is not known
    instances: InstanceCounts | None = None  # weighted pixels; None where there is no instance map
    worst: Box | None = None  # the part of the image in which most pixels are wrong

    def matrix(self, classes: int) -> np.ndarray:
        """(N, N + 1) int64."""
        return from_text(self.confusion, (classes, classes + 1))


RECORDS = TypeAdapter(list[ImageRecord])  # as JSON holds them; what does not fit is a ValueError


@dataclass
class TemperatureCounts:
    """What calibration by temperature needs, over all images; see `temperature_losses`, `temperature_confidences`."""

    losses: np.ndarray = field(default_factory=lambda: np.zeros(len(TEMPERATURES) + 1, np.int64))
    confidences: np.ndarray = field(default_factory=lambda: np.zeros((len(TEMPERATURES), 3, BINS), np.int64))

    def add(self, other: TemperatureCounts) -> None:
        """Adds another's."""
        self.losses += other.losses
        self.confidences += other.confidences

    def to_plain(self) -> dict[str, str]:
        """For JSON."""
        return {"losses": to_text(self.losses), "confidences": to_text(self.confidences)}

    @classmethod
    def of_plain(cls, plain: dict[str, str] | None) -> TemperatureCounts:
        """What `to_plain` gave, nothing counted if None; ValueError where it is not."""
        made = cls()
        if plain is not None:
            made.losses = from_text(plain.get("losses", ""), made.losses.shape)
            made.confidences = from_text(plain.get("confidences", ""), made.confidences.shape)
        return made


@dataclass(frozen=True, eq=False)
class SegmentedImage:
    """One image with all that is known of it."""

    index: int  # its place in the data set
    image: np.ndarray  # (H, W, 3) uint8, blue green red
    label: np.ndarray | None  # (H, W) uint8 class ids; None where it was not asked for
    ids: np.ndarray  # (H, W) uint8 predicted class ids
    # (H, W) float32 probability of the predicted class; None where it is not known
    confidence: np.ndarray | None = None
    # (C, h, w) float32 class probabilities of every `sampling_step`-th pixel and row, likewise
    samples: np.ndarray | None = None
    seconds: float = 0.0  # that segmenting it took


@dataclass(frozen=True, eq=False)
class Measured:
    """One image's record, and what is kept beside the records."""

    record: ImageRecord
    temperatures: TemperatureCounts | None = None
    crop: Shown | None = None
    view: Shown | None = None


def count_only(pair: Pair, label: np.ndarray, counts: np.ndarray) -> ImageRecord:
    """The record of an image of which nothing but (N, N + 1) `counts` is wanted."""
    height, width = label.shape
    digest = hashlib.sha256(label.tobytes()).hexdigest()[:16]
    return ImageRecord(pair.name, (width, height), digest, to_text(counts))


def measure(found: SegmentedImage, pair: Pair, counts: np.ndarray, palette: np.ndarray, cityscapes: bool) -> Measured:
    """Looks at an image from all sides.

    Args:
        found: with its label; ids and samples by the data set's classes.
        counts: (N, N + 1), its confusion matrix.
        cityscapes: there may be instance maps.
    """
    label, ids, classes = found.label, found.ids, len(counts)
    assert label is not None
    valid, right = label != IGNORE, label == ids
    instances = read_instances(pair, label.shape) if cityscapes else None
    box = worst_box(valid & ~right)
    record = replace(
        count_only(pair, label, counts),
        boundary=to_text(boundary_counts(ids, label, classes)),
        trimap=to_text(trimap_counts(ids, label)),
        instances=None if instances is None else count_instances(ids, instances),
        worst=box,
    )
    temperatures = None
    if found.confidence is not None and found.samples is not None:
        doubt = mean_doubt(found.confidence)
        record = replace(record, confidence=to_text(confidence_counts(found.confidence, right, valid)), doubt=doubt)
        temperatures = _try_temperatures(found.index, found.samples, label)
    part = slice(box.y, box.y + box.side), slice(box.x, box.x + box.side)
    crop = tiles(found.image[part], label[part], ids[part], palette, CROP_TILE)
    rank = float(nan_mean(iou_in_images(parts_of(counts[None])))[0])
    view = tiles(found.image, label, ids, palette, VIEW_TILE)
    return Measured(
        record,
        temperatures,
        Shown(-float(box.wrong), crop) if box.wrong else None,
        Shown(rank, view) if rank == rank else None,
    )


def _try_temperatures(index: int, samples: np.ndarray, label: np.ndarray) -> TemperatureCounts:
    """The sampled pixels under each temperature; fitted on the images with even places, tested on the others."""
    step = sampling_step(*label.shape)
    truth = label[::step, ::step]
    inside = truth != IGNORE
    probabilities, truth, counts = samples[:, inside], truth[inside].astype(np.intp), TemperatureCounts()
    if index % 2:
        counts.confidences = temperature_confidences(probabilities, truth)
    else:
        counts.losses = temperature_losses(probabilities, truth)
    return counts
