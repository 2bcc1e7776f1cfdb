"""Opening a data set: whichever kind lies under a path, or the one that a configuration names or describes."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from dgmn2cli.config import DataConfig
from dgmn2cli.data.cityscapes import IMAGE_SUFFIX, SPLITS, is_cityscapes, open_cityscapes
from dgmn2cli.data.dataset import IGNORE, STORED_IDS, IdMap, SegmentationSet
from dgmn2cli.data.files import is_litter
from dgmn2cli.data.folder import DESCRIPTION, SPLIT, find_description, load_description, open_folder
from dgmn2cli.data.layout import ANY, Layout, open_folders
from dgmn2cli.data.preset import recognise
from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.files import absence


def open_dataset(root: str | Path, split: str, *, labels: bool = True) -> SegmentationSet:
    """One split of the data set at `root`: a Cityscapes tree, or a folder with (or path of) a `dataset.toml`.

    Args:
        labels: False to use the images only.

    Raises:
        ConfigError: a wrong description.
        DataError: nothing of the kind is there, or images lack their labels (all are named).
    """
    root = Path(root)
    description = find_description(root)
    if description is not None:
        return open_folder(description, split, labels=labels)
    if is_cityscapes(root):
        return open_cityscapes(root, split, labels=labels)
    why = "it holds neither leftImg8bit nor " + DESCRIPTION if os.path.isdir(root) else absence(root, "folder")
    hint = "Give the folder of a Cityscapes tree, or of a dataset.toml; `dgmn2 data synth DIR` makes one to try."
    if os.path.isdir(root) and (known := recognise(root)):
        hint = f"It is laid out like {' and '.join(known)}: add --dataset {known[0]}."
    raise DataError("cannot open the data set", where=root, why=why, hint=hint)


def find_splits(root: str | Path) -> tuple[str, ...]:
    """The splits under `root`: train, val and test first, then others by name; of a Cityscapes tree the labelled ones.

    A description says them, or has `{split}` in its folders; else it has one, called "all".
    """
    root = Path(root)
    description = find_description(root)
    top, folders, named = root, f"gtFine/{SPLIT}", tuple[str, ...]()
    if description is not None:
        said = load_description(description)
        top, folders, named = description.parent, said.images, said.splits
    path = str(top / folders)
    pattern = glob.escape(path).replace(f"[{ANY}]", ANY)
    if named:
        return tuple(name for name in named if any(glob.iglob(pattern.replace(SPLIT, name))))
    if SPLIT not in folders:
        return ("all",)
    shape = re.compile(re.escape(path).replace(re.escape(ANY), "[^/]*").replace(re.escape(SPLIT), "([^/]+)"))
    there = filter(os.path.isdir, glob.iglob(pattern.replace(SPLIT, ANY)))
    found = {match[1] for folder in there if (match := shape.fullmatch(folder)) and not is_litter(match[1])}
    if description is None:
        found = {split for split in found if any((root / "leftImg8bit" / split).glob(f"*/*{IMAGE_SUFFIX}"))}
    return tuple(split for split in (*SPLITS, *sorted(found - set(SPLITS))) if split in found)


def is_described(settings: DataConfig) -> bool:
    """Whether the configuration itself describes folders of the user's; else the data set's root says what it is."""
    return settings.kind == "folder" and len(settings.classes) > 0


def open_configured(settings: DataConfig, split: str, root: Path | None = None) -> SegmentationSet:
    """One split of the data set that `settings` name.

    Args:
        root: instead of `settings.root`.
        settings: of kind `folder` with `classes`: they describe the folders themselves, and the splits are `train` and
            `val`. Else whatever lies in their root: a Cityscapes tree, or a folder with a `dataset.toml`.

    Raises:
        ConfigError: wrong classes or colours, or a wrong `dataset.toml`.
        DataError: nothing of the kind is there, or images lack their labels (all are named).
    """
    root = Path(settings.root) if root is None else root
    if is_described(settings):
        return _open_described(settings, root, split)
    if settings.kind == "folder" and find_description(root) is None:
        why = f"data.kind is 'folder', and neither data.classes nor a {DESCRIPTION} there describes it"
        hint = f"Give data.classes and the folders in the configuration, or write a {DESCRIPTION}."
        raise DataError("cannot open the data set", where=root, why=why, hint=hint)
    data = open_dataset(root, split)
    if settings.classes and settings.classes != data.classes:
        raise ConfigError("data.classes is not what the data set has", where=data.root, faults=_unlike(settings, data))
    if settings.palette:
        data = replace(data, palette=np.array(settings.palette, np.uint8))
    if len(data.palette) != len(data.classes):
        why = f"{len(data.palette)} colours for {len(data.classes)} classes"
        raise ConfigError("data.palette does not fit the data set", where=data.root, why=why)
    if settings.ignore_index == IGNORE:
        return data
    ignoring = {id(ids): _ignoring(ids, settings.ignore_index) for ids in {pair.ids for pair in data.pairs}}
    return replace(data, pairs=tuple(replace(pair, ids=ignoring[id(pair.ids)]) for pair in data.pairs))


def split_name(settings: DataConfig, part: str) -> str:
    """What the split to train on (`part` is `train`) or to evaluate on (`val`) is called."""
    if is_described(settings):
        return part
    return settings.train_split if part == "train" else settings.val_split


def _unlike(settings: DataConfig, data: SegmentationSet) -> list[str]:
    """A line for each class that is named otherwise, or has no counterpart."""
    named = enumerate(zip_longest(settings.classes, data.classes, fillvalue="none"))
    return [f"class {i}: data.classes says {said}, the data set {has}" for i, (said, has) in named if said != has]


def _ignoring(ids: IdMap, ignored: int) -> IdMap:
    """`ids` with one class ignored, too; above the classes' 255, with one stored id ignored."""
    table, legal = np.where(ids.table == ignored, IGNORE, ids.table).astype(np.uint8), ids.legal.copy()
    if ignored > IGNORE:
        table[ignored], legal[ignored] = IGNORE, True
    return replace(ids, table=table, legal=legal)


def _open_described(settings: DataConfig, root: Path, split: str) -> SegmentationSet:
    if split not in ("train", "val"):
        why = f"the configuration describes train and val, not {split!r}"
        raise DataError("cannot open the data set", where=root, why=why, hint="Choose one of these splits.")
    images, labels = getattr(settings, f"{split}_images"), getattr(settings, f"{split}_labels")
    layout = Layout(images, labels, settings.image_suffix, {settings.label_suffix: described_ids(settings)})
    return open_folders(root, root, split, layout, settings.classes, settings.palette)


def described_ids(settings: DataConfig) -> IdMap:
    """How stored values become classes: `id_map`, then `reduce_zero_label`, then `ignore_index`; 255 is ignored, too.

    A stored value that ends as neither a class nor ignored is a fault of the file.
    """
    mapped, meaning = dict(settings.id_map), {}
    ignored = min(settings.ignore_index + settings.reduce_zero_label, STORED_IDS - 1)
    for stored in sorted({*range(256), *mapped, ignored}):
        value = mapped.get(stored, stored)
        if value == IGNORE or (settings.reduce_zero_label and value == 0):
            meaning[stored] = IGNORE
            continue
        value -= settings.reduce_zero_label
        if value == settings.ignore_index != IGNORE:
            meaning[stored] = IGNORE
        elif value < len(settings.classes):
            meaning[stored] = value
    hint = "Check data.classes, data.ignore_index, data.reduce_zero_label and data.id_map in the configuration."
    return IdMap.of("class ids", meaning, hint)
