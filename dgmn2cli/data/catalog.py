"""Opening a data set, whichever kind lies under a path."""

from __future__ import annotations

import os
from pathlib import Path

from dgmn2cli.data.cityscapes import IMAGE_SUFFIX, SPLITS, is_cityscapes, open_cityscapes
from dgmn2cli.data.dataset import SegmentationSet
from dgmn2cli.data.description import DESCRIPTION, find_description, load_description
from dgmn2cli.data.files import is_litter
from dgmn2cli.data.folder import open_folder
from dgmn2cli.errors import DataError
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
    raise DataError("cannot open the data set", where=root, why=why, hint=hint)


def find_splits(root: str | Path) -> tuple[str, ...]:
    """The splits under `root`: train, val and test first, then others by name; of a Cityscapes tree the labelled ones.

    A description without `{split}` has one, called "all".
    """
    root = Path(root)
    description = find_description(root)
    if description is None:
        found = {
            name for name in _folders(root / "gtFine") if any((root / "leftImg8bit" / name).glob(f"*/*{IMAGE_SUFFIX}"))
        }
    else:
        images = load_description(description).images
        if "{split}" not in images:
            return ("all",)
        before, _, after = images.partition("{split}")
        folder, prefix = (description.parent / (before + "x")).parent, before.rpartition("/")[2]
        suffix = after.partition("/")[0]
        splits = {
            name[len(prefix) : len(name) - len(suffix)]
            for name in _folders(folder)
            if name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)
        }
        found = {split for split in splits if os.path.isdir(description.parent / (before + split + after))}
    return tuple(split for split in (*SPLITS, *sorted(found - set(SPLITS))) if split in found)


def _folders(parent: Path) -> list[str]:
    """Names of the folders in `parent` that nobody hid; none where there is no such folder."""
    try:
        return [name for name in os.listdir(parent) if not is_litter(name) and os.path.isdir(parent / name)]
    except (OSError, ValueError):
        return []
