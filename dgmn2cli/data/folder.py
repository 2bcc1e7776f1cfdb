"""Owns users' own data: two folders of pictures and label maps, described by a small TOML file."""

from __future__ import annotations

import colorsys
import os
from pathlib import Path

import numpy as np

from dgmn2cli.data.dataset import IdMap, Pair, SegmentationSet, missing_labels
from dgmn2cli.data.description import DESCRIPTION, IGNORE, SPLIT, FolderDescription, load_description
from dgmn2cli.data.files import SUFFIXES
from dgmn2cli.errors import DataError
from dgmn2cli.files import absence


def id_map(description: FolderDescription) -> IdMap:
    """How this data set's stored ids become classes; an id that is both mapped and ignored by default is mapped."""
    classes, mapped = description.classes, dict(description.id_map)
    meaning = dict.fromkeys(range(256) if description.unlisted == "ignore" else (), IGNORE)
    if mapped:
        meaning |= {stored: IGNORE if name == "ignore" else classes.index(name) for stored, name in mapped.items()}
    elif description.reduce_zero_label:
        meaning |= {0: IGNORE} | {i + 1: i for i in range(len(classes))}
    else:
        meaning |= {i: i for i in range(len(classes))}
    meaning |= {stored: IGNORE for stored in description.ignore if stored not in mapped}
    return IdMap.of("class ids", meaning, f"Check classes, ignore and id_map in {DESCRIPTION}.")


def chosen_palette(count: int) -> np.ndarray:
    """(count, 3) uint8: colours far apart in hue, for classes that come without."""
    colors = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 0.95 - 0.25 * (i % 3)) for i in range(count)]
    return np.rint(np.array(colors).reshape(-1, 3) * 255).astype(np.uint8)


def open_folder(path: str | Path, split: str = "train", *, labels: bool = True) -> SegmentationSet:
    """One split of a user's data set.

    Args:
        path: the description's path.
        labels: False to use the pictures only.

    Raises:
        ConfigError: the description is wrong.
        DataError: no such folder, no pictures, or pictures without a label map (all are named).
    """
    path = Path(path)
    description = load_description(path)
    folders = (description.images.replace(SPLIT, split), description.labels.replace(SPLIT, split))
    suffixes = (description.image_suffix, description.label_suffix)
    pairs, unmatched = find_pairs(path, path.parent, folders, suffixes, id_map(description), labels=labels)
    palette = (
        np.array(description.palette, np.uint8) if description.palette else chosen_palette(len(description.classes))
    )
    return SegmentationSet(
        path, split, pairs, description.classes, palette, description.categories, unmatched=unmatched
    )


def find_pairs(
    source: Path, root: Path, folders: tuple[str, str], suffixes: tuple[str, str], ids: IdMap, *, labels: bool = True
) -> tuple[tuple[Pair, ...], tuple[Path, ...]]:
    """The pictures of a split with their label maps, and the label files that no picture belongs to.

    Args:
        source: what errors name as the data set.
        root: what the folders are relative to.
        folders: of the pictures and of the label maps.
        suffixes: what picture names end in (empty: any picture), and what replaces that in the label's name.
        ids: what the stored ids mean.
        labels: False to use the pictures only.

    Raises:
        DataError: no such folder, no pictures, or pictures without a label map (all are named).
    """
    images_dir, labels_dir = (root / folder for folder in folders)
    endings = (suffixes[0].lower(),) if suffixes[0] else SUFFIXES
    pictures = sorted(file for file in images_dir.rglob("*") if file.name.lower().endswith(endings))
    if not pictures:
        why = (
            f"there are no pictures named *{', *'.join(endings)}"
            if os.path.isdir(images_dir)
            else absence(images_dir, "folder")
        )
        hint = "Check `images` and `image_suffix` where the data set is described, and the split's name."
        raise DataError("cannot open the data set", where=images_dir, why=why, hint=hint)
    pairs, faults, used = [], [], set()
    for picture in pictures:
        relative = picture.relative_to(images_dir).as_posix()
        stem = relative[: -len(next(suffix for suffix in endings if relative.lower().endswith(suffix)))]
        label = labels_dir / (stem + suffixes[1]) if labels else None
        if label is not None and not label.exists():
            faults.append(f"{picture}: there is no {label}")
        used.add(label)
        pairs.append(Pair(stem, picture, label, ids))
    if faults:
        raise missing_labels("folder", source, faults, len(pictures))
    found = labels_dir.rglob(f"*{suffixes[1]}") if labels else ()
    return tuple(pairs), tuple(sorted(file for file in found if file not in used))
