"""Owns the check of a data set before anything is computed from it: every fault named, every class counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dgmn2cli.data.dataset import IGNORE, SegmentationSet, check_sizes
from dgmn2cli.data.images import MAX_PIXELS, image_header
from dgmn2cli.errors import DataError

_WEIGHT_OFFSET = 1.02


@dataclass(frozen=True)
class ClassCount:
    """One class over all label maps: pixels, share of the pixels that are not ignored, images, suggested weight."""

    name: str
    pixels: int
    share: float
    images: int
    weight: float


@dataclass(frozen=True)
class DataReport:
    """What the check of one split found.

    Attributes:
        faults: one line per broken pair, naming the file.
        notes: what is odd but harms nothing.
        sizes: "WIDTHxHEIGHT" -> number of pictures.
        ignored_share: share of all pixels that is ignored.
    """

    root: str
    split: str
    kind: str
    pairs: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    sizes: dict[str, int]
    classes: tuple[ClassCount, ...]
    ignored_share: float


@dataclass(frozen=True)
class _PairFacts:
    fault: str
    size: tuple[int, int]
    counts: np.ndarray  # (256,) int64: pixels of each class id and of IGNORE


def check_dataset(
    data: SegmentationSet,
    *,
    thorough: bool = True,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    step: Callable[[], object] = lambda: None,
) -> DataReport:
    """Reads every pair: sizes, ids, damage. Nothing is written, nothing is kept but the counts.

    Args:
        thorough: decode the pictures; otherwise only their containers are checked (sizes, checksums, cuts).
        workers: threads; decoding runs outside Python's lock.
        step: called after each pair.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        facts = list(_counted(pool.map(lambda i: _look(data, i, thorough, max_pixels), range(len(data))), step))
    counts = np.sum([fact.counts for fact in facts], axis=0)
    occurrences = np.sum([fact.counts > 0 for fact in facts], axis=0)
    sizes = Counter(f"{fact.size[1]}x{fact.size[0]}" for fact in facts if not fact.fault)
    pixels = counts[: len(data.classes)]
    shares = pixels / max(int(pixels.sum()), 1)
    classes = tuple(
        ClassCount(name, int(pixels[i]), float(shares[i]), int(occurrences[i]), float(weight))
        for i, (name, weight) in enumerate(zip(data.classes, class_weights(pixels), strict=True))
    )
    return DataReport(
        root=str(data.root),
        split=data.split,
        kind=data.kind,
        pairs=len(data),
        faults=tuple(fact.fault for fact in facts if fact.fault),
        notes=_notes(data, classes),
        sizes=dict(sizes.most_common()),
        classes=classes,
        ignored_share=float(counts[IGNORE] / max(int(counts.sum()), 1)),
    )


def require_sound(report: DataReport) -> DataReport:
    """The report itself, if it has no faults.

    Raises:
        DataError: with every fault.
    """
    if report.faults:
        why = f"{len(report.faults)} of {report.pairs} pairs of split {report.split} cannot be used"
        hint = "Mend or remove them; `dgmn2 data check` shows them again."
        raise DataError("the data set has faults", where=report.root, why=why, hint=hint, faults=report.faults)
    return report


def class_weights(pixels: np.ndarray) -> np.ndarray:
    """(N,) float64 weights for a loss, their mean 1: 1 / ln(1.02 + share), so that rare classes weigh up to 50 times.

    Classes without pixels get the mean, 1; they are left out of the scaling. Source: ENet, section 5.1.
    """
    present = pixels > 0
    weights = np.ones(len(pixels))
    if present.any():
        raw = 1 / np.log(_WEIGHT_OFFSET + pixels[present] / pixels.sum())
        weights[present] = raw / raw.mean()
    return weights


def _counted(facts: Iterable[_PairFacts], step: Callable[[], object]) -> Iterable[_PairFacts]:
    for fact in facts:
        step()
        yield fact


def _look(data: SegmentationSet, index: int, thorough: bool, max_pixels: int) -> _PairFacts:
    """What one pair is like; its first fault, if any."""
    pair = data.pairs[index]
    try:
        if thorough:
            size: tuple[int, ...] = data.read_image(index, max_pixels=max_pixels).shape[:2]
        else:
            header = image_header(pair.image, max_pixels)
            size = (header.height, header.width)
        label = data.read_label(index, max_pixels=max_pixels)
        check_sizes(size, label.shape, pair)
    except DataError as error:
        return _PairFacts(str(error), (0, 0), np.zeros(256, np.int64))
    return _PairFacts("", (size[0], size[1]), np.bincount(label.ravel(), minlength=256))


def _notes(data: SegmentationSet, classes: tuple[ClassCount, ...]) -> tuple[str, ...]:
    notes = [f"{path}: no picture belongs to this label map" for path in data.unmatched]
    telltale = data.pairs[0].ids.telltale
    if telltale and all(pair.ids.telltale for pair in data.pairs) and any(entry.pixels for entry in classes):
        beyond = {int(target) for target in data.pairs[0].ids.table[telltale:]} - {IGNORE}
        if not any(classes[target].pixels for target in beyond):
            notes.append(f"no label map holds an id from {telltale} on: are they training ids under a wrong name?")
    absent = [entry.name for entry in classes if not entry.pixels]
    if absent:
        notes.append(f"classes without a pixel: {', '.join(absent)}")
    return tuple(notes)
