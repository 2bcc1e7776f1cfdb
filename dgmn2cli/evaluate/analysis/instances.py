"""iIoU: the Cityscapes benchmark's scores in which every instance of a class weighs as much as an average one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from dgmn2cli.data.cityscapes import CATEGORY_OF_CLASS, CLASSES, LABEL_ID_OF_TRAIN_ID, LABELS, TRAIN_ID_OF_LABEL_ID
from dgmn2cli.data.dataset import Pair
from dgmn2cli.data.images import read_label
from dgmn2cli.errors import DataError
from dgmn2cli.evaluate.analysis.bootstrap import nan_mean

SUFFIX = "_gtFine_instanceIds.png"
GROUP = 1000  # an instance's id is its label id times this, plus its number
AREAS = {  # mean pixels of an instance, by which the benchmark weighs
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
_CLASS_OF = {label.id: label.train_id for label in LABELS if label.name in AREAS}
_GROUP_OF = np.full(256, 255, np.uint8)  # category of each training id
_GROUP_OF[: len(CLASSES)] = [[*dict.fromkeys(CATEGORY_OF_CLASS)].index(group) for group in CATEGORY_OF_CLASS]


@dataclass(frozen=True)
class InstanceCounts:
    """One image's instances: pixels weighted by the mean area of their class over the area of the instance."""

    right: dict[str, float]  # by class name, of the weighted pixels those predicted as their class
    wrong: dict[str, float]  # the others
    # group_right, group_wrong: likewise, where any class of the same category is right
    group_right: dict[str, float]
    group_wrong: dict[str, float]


@dataclass(frozen=True)
class InstanceScores:
    """iIoU from 0 to 1, NaN where undefined: means, and by class and category."""

    mean_iiou: float
    mean_category_iiou: float
    classes: dict[str, float]
    categories: dict[str, float]


def read_instances(pair: Pair, size: tuple[int, ...]) -> np.ndarray | None:
    """The image's instance ids, (H, W) uint16; None without a readable map of that size beside its label."""
    assert pair.label is not None
    path = pair.label.with_name(pair.label.name.split("_gtFine_")[0] + SUFFIX)
    try:
        ids = read_label(path) if path.is_file() else None
    except DataError:
        return None  # the report says for how many images there was one
    return ids if ids is not None and ids.shape == tuple(size) else None


def count_instances(prediction: np.ndarray, instances: np.ndarray) -> InstanceCounts:
    """Weighs the pixels of every instance.

    Args:
        prediction: (H, W) uint8 training ids.
        instances: (H, W) instance ids; those below 1000 are no instances.
    """
    where = instances >= GROUP
    ids, found = instances[where].astype(np.intp), prediction[where]
    areas = np.bincount(ids)
    hits = np.bincount(ids[LABEL_ID_OF_TRAIN_ID[found] == ids // GROUP], minlength=areas.size)
    near = ids[_GROUP_OF[found] == _GROUP_OF[TRAIN_ID_OF_LABEL_ID[ids // GROUP]]]
    group_hits = np.bincount(near, minlength=areas.size)
    counts = InstanceCounts(*(defaultdict(float) for _ in range(4)))
    for index in np.flatnonzero(areas):
        train_id = _CLASS_OF.get(int(index) // GROUP)
        if train_id is not None:
            area, name, group = int(areas[index]), CLASSES[train_id], CATEGORY_OF_CLASS[train_id]
            weight = AREAS[name] / area
            counts.right[name] += int(hits[index]) * weight
            counts.wrong[name] += (area - int(hits[index])) * weight
            counts.group_right[group] += int(group_hits[index]) * weight
            counts.group_wrong[group] += (area - int(group_hits[index])) * weight
    return counts


def instance_scores(images: list[InstanceCounts], confusion: np.ndarray) -> InstanceScores:
    """iIoU = weighted right / (weighted right + weighted wrong + false positives).

    Args:
        images: in their order, so that the sums are the same whoever counted.
        confusion: (19, 20) of all images; the false positives are not weighted.
    """
    total = InstanceCounts(*(defaultdict(float) for _ in range(4)))
    for image in images:
        for name, sums in vars(total).items():
            for key, value in getattr(image, name).items():
                sums[key] += value
    inner = confusion[:, : len(CLASSES)]
    false = {name: int(inner[:, i].sum() - inner[i, i]) for i, name in enumerate(CLASSES)}
    classes = {name: _iou(total.right, total.wrong, name, false[name]) for name in AREAS}
    groups = dict.fromkeys(group for name, group in zip(CLASSES, CATEGORY_OF_CLASS, strict=True) if name in AREAS)
    categories = {}
    for group in groups:
        member = np.array([other == group for other in CATEGORY_OF_CLASS])
        categories[group] = _iou(total.group_right, total.group_wrong, group, int(inner[~member][:, member].sum()))
    mean, group_mean = (float(nan_mean(np.array([*values.values()]))) for values in (classes, categories))
    return InstanceScores(mean, group_mean, classes, categories)


def _iou(right: dict[str, float], wrong: dict[str, float], name: str, false: int) -> float:
    hit = right.get(name, 0.0)
    union = hit + wrong.get(name, 0.0) + false
    return hit / union if union else float("nan")
