"""Users' own data: two folders of images and label maps, described by a small TOML file."""

from __future__ import annotations

import colorsys
import os
from collections import Counter
from pathlib import Path

import numpy as np

from dgmn2cli.data.dataset import UNKNOWN_COLOUR, IdMap, Pair, SegmentationSet, missing_labels
from dgmn2cli.data.description import DESCRIPTION, IGNORE, SPLIT, FolderDescription, load_description
from dgmn2cli.data.files import SUFFIXES, Found, comparable, ends_with, find_files, short_names
from dgmn2cli.errors import DataError
from dgmn2cli.files import absence


def id_map(description: FolderDescription) -> IdMap:
    """How this data set's stored ids become classes; an id that is both mapped and ignored by default is mapped."""
    classes, mapped = description.classes, dict(description.id_map)
    meaning = dict.fromkeys(range(UNKNOWN_COLOUR + 1) if description.unlisted == "ignore" else (), IGNORE)
    if mapped:
        meaning |= {stored: IGNORE if name == "ignore" else classes.index(name) for stored, name in mapped.items()}
    elif description.reduce_zero_label:
        meaning |= {0: IGNORE} | {i + 1: i for i in range(len(classes))}
    else:
        meaning |= {i: i for i in range(len(classes))}
    meaning |= {stored: IGNORE for stored in description.ignore if stored not in mapped}
    colours = np.array(description.palette, np.uint8) if description.label_format == "colour" else None
    return IdMap.of("class ids", meaning, f"Check classes, ignore and id_map in {DESCRIPTION}.", colours=colours)


def chosen_palette(count: int) -> np.ndarray:
    """(count, 3) uint8: colours far apart in hue, for classes that come without."""
    colors = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 0.95 - 0.25 * (i % 3)) for i in range(count)]
    return np.rint(np.array(colors).reshape(-1, 3) * 255).astype(np.uint8)


def open_folder(path: str | Path, split: str = "train", *, labels: bool = True) -> SegmentationSet:
    """One split of a user's data set.

    Args:
        path: the description's path.
        labels: False to use the images only.

    Raises:
        ConfigError: the description is wrong.
        DataError: no such folder, no images, or images without a label map (all are named).
    """
    path = Path(path)
    description = load_description(path)
    folders = (description.images.replace(SPLIT, split), description.labels.replace(SPLIT, split))
    suffixes = (description.image_suffix, description.label_suffix)
    pairs, unmatched, notes = find_pairs(path, path.parent, folders, suffixes, id_map(description), labels=labels)
    palette = (
        np.array(description.palette, np.uint8) if description.palette else chosen_palette(len(description.classes))
    )
    return SegmentationSet(
        path, split, pairs, description.classes, palette, description.categories, unmatched=unmatched, notes=notes
    )


def find_pairs(
    source: Path, root: Path, folders: tuple[str, str], suffixes: tuple[str, str], ids: IdMap, *, labels: bool = True
) -> tuple[tuple[Pair, ...], tuple[Path, ...], tuple[str, ...]]:
    """The images of a split with their label maps, the label files that no image belongs to, and notes.

    Args:
        source: what errors name as the data set.
        root: what the folders are relative to.
        folders: of the images and of the label maps; they may be the same.
        suffixes: what image names end in (empty: any image), and what replaces that in the label's name.
        ids: what the stored ids mean.
        labels: False to use the images only.

    Raises:
        DataError: no such folder, no images, or images without a label map (all are named).
    """
    images_dir, labels_dir = (root / folder for folder in folders)
    endings = (suffixes[0],) if suffixes[0] else SUFFIXES
    what, hint = "cannot open the data set", "Check `images` and `image_suffix` in its description, and the split."
    if not os.path.isdir(images_dir):
        raise DataError(what, where=images_dir, why=absence(images_dir, "folder"), hint=hint)
    found = find_files(images_dir, endings)
    there = Found((), ())
    if os.path.isdir(labels_dir) and (labels or images_dir in (labels_dir, *labels_dir.parents)):
        there = find_files(labels_dir, (suffixes[1],), name_others=False)
    label_of = {_stem(file, labels_dir, (suffixes[1],)): file for file in there.files}
    stems = {file: _stem(file, images_dir, endings) for file in found.files}
    beside = {label for file, stem in stems.items() if (label := label_of.get(stem)) not in (None, file)}
    if images_dir in (labels_dir, *labels_dir.parents):  # what is named like a label there is none of the images
        beside |= set(there.files)
    images = [file for file in found.files if file not in beside] or ([] if labels else list(found.files))
    if not images:
        why = f"there are no images named *{', *'.join(endings)}" + (" beside the label maps" if beside else "")
        raise DataError(what, where=images_dir, why=why, hint=hint)
    often = Counter(stems[file] for file in images)
    pairs, faults = [], []
    names = short_names(
        [os.fspath(image.relative_to(images_dir)) for image in images], [stems[file] for file in images]
    )
    for image, name in zip(images, names, strict=True):
        stem = stems[image]
        label = label_of.get(stem, labels_dir / (stem + suffixes[1])) if labels else None
        if labels and stem not in label_of:
            faults.append(f"{image}: there is no {label}")
        pairs.append(Pair(name, image, label, ids))
    if faults:
        raise missing_labels("folder", source, faults, len(images))
    often_named = often.items() if labels else ()
    shared = [f"{label_of[stem]}: {count} images have this label map" for stem, count in often_named if count > 1]
    known = {pair.label for pair in pairs} | set(images)
    unmatched = tuple(file for file in there.files if file not in known) if labels else ()
    return tuple(pairs), unmatched, (*found.notes, *there.notes, *shared)


def _stem(file: Path, folder: Path, endings: tuple[str, ...]) -> str:
    """The name below `folder` without its ending, in the form in which names are compared."""
    name = comparable(file.relative_to(folder))
    return name[: len(name) - len(comparable(ends_with(name, endings)))]
