"""The confusion matrix of one image, and the IoU and accuracies computed from a sum of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgmn2cli.data.dataset import IGNORE
from dgmn2cli.errors import DataError
from dgmn2cli.evaluate.analysis.bootstrap import nan_mean
from dgmn2cli.evaluate.analysis.counts import bands


@dataclass(frozen=True)
class ClassScore:
    """One class; areas in pixels whose label is not ignored. `iou` and `accuracy` are NaN where undefined."""

    name: str
    iou: float
    accuracy: float
    intersection: int
    labelled: int
    predicted: int


@dataclass(frozen=True)
class CategoryScore:
    """One group of classes; confusion within the group is no error. NaN where the group is absent."""

    name: str
    iou: float


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    pixel_accuracy: float  # all intersections over all labelled pixels (aAcc)
    mean_iou: float  # mean of the classes' IoU (mIoU), of unrounded values, undefined ones left out
    mean_accuracy: float  # mean of the classes' accuracy (mAcc), likewise
    mean_category_iou: float  # mean over the groups; NaN without groups
    # classes, categories: in the order given
    classes: tuple[ClassScore, ...]
    categories: tuple[CategoryScore, ...]
    # names of the classes that are not in the labels; their accuracy is undefined, and their IoU, too, unless they were
    # predicted (then it is 0 and counts)
    absent: tuple[str, ...]
    pixels: int  # labelled pixels


def confusion(prediction: np.ndarray, label: np.ndarray, num_classes: int, where: object = "") -> np.ndarray:
    """The counts of (label, prediction) pairs in one image.

    Args:
        prediction: (H, W) integer class ids; any value outside the classes counts as wrong.
        label: (H, W) integer class ids, or `IGNORE`.
        where: what to name in an error.

    Returns:
        (N, N + 1) int64; row: label, column: prediction, the last column for predictions outside 0..N-1.

    Raises:
        DataError: the sizes differ, or the label holds an id that is neither a class nor `IGNORE`.
    """
    what = "cannot compare the prediction with its label"
    if prediction.shape != label.shape:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (prediction, label)]
        raise DataError(what, where=where, why=f"the prediction is {sizes[0]}, the label {sizes[1]}")
    counts = np.zeros(num_classes * (num_classes + 1), np.int64)
    for rows in bands(*label.shape):  # the numbers on the way take 30 times an image's ids
        labels = label[rows]
        valid = labels != IGNORE
        truth, guess = labels[valid].astype(np.int64), prediction[rows][valid].astype(np.int64)
        if truth.size and (truth.min() < 0 or truth.max() >= num_classes):
            wrong = [int(i) for i in np.unique(label) if i != IGNORE and not 0 <= i < num_classes]
            why = f"the label holds {wrong[:5]}, and the classes are 0 to {num_classes - 1} ({IGNORE}: ignored)"
            raise DataError(what, where=where, why=why, hint="Check the data set's id map with `dgmn2 data check`.")
        guess[(guess < 0) | (guess >= num_classes)] = num_classes
        counts += np.bincount(truth * (num_classes + 1) + guess, minlength=counts.size)
    return counts.reshape(num_classes, num_classes + 1)


def compute_scores(counts: np.ndarray, names: Sequence[str], categories: Sequence[str] = ()) -> Scores:
    """IoU = intersection / union, accuracy = intersection / label area, per class and on average.

    Args:
        counts: (N, N + 1) int64, sums of what `confusion` gives.
        names: N class names.
        categories: N names of the groups the classes belong to, or none.

    The groups follow the Cityscapes benchmark: a pixel of one class predicted as another of its group is right.
    """
    inner = counts[:, : len(names)]
    intersection, labelled, predicted = np.diag(inner), counts.sum(axis=1), inner.sum(axis=0)
    iou = _ratio(intersection, labelled + predicted - intersection)
    accuracy = _ratio(intersection, labelled)
    classes = tuple(
        ClassScore(name, float(iou[i]), float(accuracy[i]), int(intersection[i]), int(labelled[i]), int(predicted[i]))
        for i, name in enumerate(names)
    )
    groups = tuple(
        CategoryScore(group, _group_iou(counts, [i for i, other in enumerate(categories) if other == group]))
        for group in dict.fromkeys(categories)
    )
    return Scores(
        pixel_accuracy=float(_ratio(intersection.sum(), labelled.sum())),
        mean_iou=float(nan_mean(iou)),
        mean_accuracy=float(nan_mean(accuracy)),
        mean_category_iou=float(nan_mean(np.array([group.iou for group in groups]))),
        classes=classes,
        categories=groups,
        absent=tuple(score.name for score in classes if not score.labelled),
        pixels=int(labelled.sum()),
    )


def _group_iou(counts: np.ndarray, members: list[int]) -> float:
    intersection = counts[np.ix_(members, members)].sum()
    union = counts[members].sum() + counts[:, members].sum() - intersection
    return float(_ratio(intersection, union))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64, NaN where `whole` is 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(part, np.float64) / np.asarray(whole, np.float64)
