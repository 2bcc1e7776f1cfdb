"""Cityscapes: its labels, their training ids, colours and categories, and the layout of its folders."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dgmn2cli.data.dataset import IGNORE, IdMap, SegmentationSet
from dgmn2cli.data.layout import Layout, open_folders
from dgmn2cli.data.names import base

SPLITS = ("train", "val", "test")
IMAGE_SUFFIX = "_leftImg8bit.png"
TRAIN_IDS_SUFFIX, LABEL_IDS_SUFFIX = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"


@dataclass(frozen=True)
class Label:
    """One of the official labels: its id in `labelIds` files, its id in training (255: ignored), its group, its colour.

    `colour` is red green blue. Ids -1 (licence plate) is stored as 255 in 8-bit files and needs no row here.
    """

    name: str
    id: int
    train_id: int
    category: str
    colour: tuple[int, int, int]


LABELS = (
    Label("unlabeled", 0, IGNORE, "void", (0, 0, 0)),
    Label("ego vehicle", 1, IGNORE, "void", (0, 0, 0)),
    Label("rectification border", 2, IGNORE, "void", (0, 0, 0)),
    Label("out of roi", 3, IGNORE, "void", (0, 0, 0)),
    Label("static", 4, IGNORE, "void", (0, 0, 0)),
    Label("dynamic", 5, IGNORE, "void", (111, 74, 0)),
    Label("ground", 6, IGNORE, "void", (81, 0, 81)),
    Label("road", 7, 0, "flat", (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", (244, 35, 232)),
    Label("parking", 9, IGNORE, "flat", (250, 170, 160)),
    Label("rail track", 10, IGNORE, "flat", (230, 150, 140)),
    Label("building", 11, 2, "construction", (70, 70, 70)),
    Label("wall", 12, 3, "construction", (102, 102, 156)),
    Label("fence", 13, 4, "construction", (190, 153, 153)),
    Label("guard rail", 14, IGNORE, "construction", (180, 165, 180)),
    Label("bridge", 15, IGNORE, "construction", (150, 100, 100)),
    Label("tunnel", 16, IGNORE, "construction", (150, 120, 90)),
    Label("pole", 17, 5, "object", (153, 153, 153)),
    Label("polegroup", 18, IGNORE, "object", (153, 153, 153)),
    Label("traffic light", 19, 6, "object", (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", (107, 142, 35)),
    Label("terrain", 22, 9, "nature", (152, 251, 152)),
    Label("sky", 23, 10, "sky", (70, 130, 180)),
    Label("person", 24, 11, "human", (220, 20, 60)),
    Label("rider", 25, 12, "human", (255, 0, 0)),
    Label("car", 26, 13, "vehicle", (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", (0, 60, 100)),
    Label("caravan", 29, IGNORE, "vehicle", (0, 0, 90)),
    Label("trailer", 30, IGNORE, "vehicle", (0, 0, 110)),
    Label("train", 31, 16, "vehicle", (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", (119, 11, 32)),
)

_TRAINED = sorted((label for label in LABELS if label.train_id != IGNORE), key=lambda label: label.train_id)
CLASSES: tuple[str, ...] = tuple(label.name for label in _TRAINED)
PALETTE: np.ndarray = np.array([label.colour for label in _TRAINED], np.uint8)  # (19, 3) red green blue
CATEGORY_OF_CLASS: tuple[str, ...] = tuple(label.category for label in _TRAINED)


TRAIN_IDS = IdMap.of(
    "labelTrainIds",
    {i: i for i in (*range(len(_TRAINED)), IGNORE)},
    hint="If the file holds labelIds, name it *_gtFine_labelIds.png: they are mapped when it is read.",
)
# 255 is no official id, but some exports use it for the licence plate (-1); beside real labelIds, some of which are
# above 18 in any street, it is ignored. A file of nothing but 0..18 and 255 holds training ids under a wrong name.
LABEL_IDS = IdMap.of(
    "labelIds",
    {label.id: label.train_id for label in LABELS} | {IGNORE: IGNORE},
    hint="They are 0 to 33; a file of training ids is named *_gtFine_labelTrainIds.png.",
    telltale=len(_TRAINED),
)
TRAIN_ID_OF_LABEL_ID: np.ndarray = LABEL_IDS.table[:256]
LABEL_ID_OF_TRAIN_ID: np.ndarray = np.zeros(256, np.uint8)
LABEL_ID_OF_TRAIN_ID[: len(_TRAINED)] = [label.id for label in _TRAINED]


def is_cityscapes(root: Path) -> bool:
    """Whether `root` looks like the top of a Cityscapes tree."""
    return os.path.isdir(root / "leftImg8bit")


def open_cityscapes(root: str | Path, split: str = "val", *, labels: bool = True) -> SegmentationSet:
    """One split of a tree `leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`, `gtFine/SPLIT/CITY/*_gtFine_label*.png`.

    An image's `labelTrainIds` file is used where there is one, otherwise its `labelIds` file, mapped when read.

    Args:
        labels: False for a split whose labels are not published; label files are then not looked for.

    Raises:
        DataError: no such split, no images, or images without a label file (all are named).
    """
    root = Path(root)
    suffixes = {TRAIN_IDS_SUFFIX: TRAIN_IDS, LABEL_IDS_SUFFIX: LABEL_IDS}
    layout = Layout(f"leftImg8bit/{split}", f"gtFine/{split}", IMAGE_SUFFIX, suffixes)
    data = open_folders(root, root, split, layout, CLASSES, PALETTE, CATEGORY_OF_CLASS, labels=labels)
    return replace(data, kind="cityscapes", pairs=tuple(replace(pair, name=base(pair.name)) for pair in data.pairs))
