"""Two folders, of images and of label maps, opened as one split of a data set: which label map is which image's."""

from __future__ import annotations

import colorsys
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from dgmn2cli.data.dataset import IdMap, Pair, SegmentationSet
from dgmn2cli.data.files import SUFFIXES, Found, ends_with, find_files
from dgmn2cli.data.names import comparable, short_names
from dgmn2cli.errors import DataError, shown
from dgmn2cli.files import absence

ANY = "*"  # in a folder's path: any one folder


@dataclass(frozen=True)
class Layout:
    """Where the files of a split lie, and how an image's name becomes its label map's.

    The two folders may be the same; `*` in them is any one folder.
    """

    images: str  # folder, from the data set's on
    labels: str
    image_suffix: str  # what names end in; empty: any image
    label_suffixes: dict[str, IdMap]  # what names end in, and what the ids in such files mean; the first found counts
    # image_prefix, label_prefix: what names begin with
    image_prefix: str = ""
    label_prefix: str = ""


def open_folders(
    source: Path,
    root: Path,
    split: str,
    layout: Layout,
    classes: tuple[str, ...],
    palette: Sequence[Sequence[int]] | np.ndarray = (),
    categories: tuple[str, ...] = (),
    *,
    labels: bool = True,
) -> SegmentationSet:
    """One split: the images with their label maps, the label files that no image belongs to, and notes.

    Args:
        source: what errors name as the data set.
        root: where the layout's folders start.
        palette: (N, 3), red green blue of each class; empty: colours are chosen.
        labels: False to use the images only.

    Raises:
        DataError: the split's name leads out, no such folder, no images, or images without a label map (all are named).
    """
    _check_split(split)
    (images_dir, of_images), (labels_dir, of_labels) = _base(root, layout.images), _base(root, layout.labels)
    endings, suffixes = (layout.image_suffix,) if layout.image_suffix else SUFFIXES, tuple(layout.label_suffixes)
    what = "cannot open the data set"
    hint = f"Expected {layout.images}/*{layout.image_suffix}. Check `images` and `image_suffix`, and the split."
    if not os.path.isdir(images_dir):
        raise DataError(what, where=images_dir, why=absence(images_dir, "folder"), hint=hint)
    beside = images_dir in (labels_dir, *labels_dir.parents)
    found, there = _within(find_files(images_dir, endings), images_dir, of_images), Found((), ())
    if os.path.isdir(labels_dir) and (labels or beside):
        there = _within(find_files(labels_dir, suffixes, name_others=False), labels_dir, of_labels)
    stems = {file: _stem(file, images_dir, endings, layout.image_prefix) for file in found.files}
    label_of: dict[str, dict[str, Path]] = {}  # by stem and suffix
    for file in there.files:
        stem = _stem(file, labels_dir, suffixes, layout.label_prefix)
        label_of.setdefault(stem, {})[ends_with(file.name, suffixes)] = file
    taken = {label for file, stem in stems.items() for label in label_of.get(stem, {}).values() if label != file}
    if beside:  # what is named like a label there is none of the images
        taken |= set(there.files)
    images = [file for file in found.files if file not in taken] or ([] if labels else list(found.files))
    if not images:
        why = f"there are no images named *{', *'.join(endings)}" + (" beside the label maps" if taken else "")
        raise DataError(what, where=images_dir, why=why, hint=hint)
    names = short_names([os.fspath(file.relative_to(images_dir)) for file in images], [stems[file] for file in images])
    pairs, faults = [], []
    for image, name in zip(images, names, strict=True):
        own = label_of.get(stems[image], {}) if labels else {}
        suffix = next((suffix for suffix in suffixes if suffix in own), suffixes[0])
        pairs.append(Pair(name, image, own.get(suffix), layout.label_suffixes[suffix]))
        if labels and not own:
            above, slash, last = stems[image].rpartition("/")
            wanted = (labels_dir / f"{above}{slash}{layout.label_prefix}{last}{suffix}" for suffix in suffixes)
            faults.append(f"{image}: there is no {' and no '.join(map(str, wanted))}")
    if faults:
        why = f"{len(faults)} of {len(images)} images have no label map"
        hint = "Add them, or remove these images; label maps are found by their names."
        raise DataError("the data set is not complete", where=source, why=why, faults=faults, hint=hint)
    often = Counter(pair.label for pair in pairs if pair.label is not None)
    shared = [f"{label}: {count} images have this label map" for label, count in often.items() if count > 1]
    known = {*images, *(label for image in images for label in label_of.get(stems[image], {}).values())}
    unmatched = tuple(file for file in there.files if file not in known) if labels else ()
    notes = (*found.notes, *there.notes, *shared)
    colours = np.array(palette, np.uint8) if len(palette) else chosen_palette(len(classes))
    return SegmentationSet(source, split, tuple(pairs), classes, colours, categories, unmatched=unmatched, notes=notes)


def chosen_palette(count: int) -> np.ndarray:
    """(count, 3) uint8: colours far apart in hue, for classes that come without."""
    colors = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.55 + 0.4 * (i % 2), 0.95 - 0.25 * (i % 3)) for i in range(count)]
    return np.rint(np.array(colors).reshape(-1, 3) * 255).astype(np.uint8)


def _check_split(split: str) -> None:
    """Raises DataError where a split's name, a folder's within the data set, leads out of it or is a pattern."""
    path = PurePath(split)
    if path.is_absolute() or ".." in path.parts or ANY in split:
        why = "its name leads out of the data set or is a pattern, wanted a folder's in it"
        raise DataError("no such split", where=shown(split), why=why, hint="Correct the split, as in train or val.")


def _base(root: Path, folder: str) -> tuple[Path, str]:
    """The part of a folder's path before its first `*`, and the pattern from there on."""
    parts = Path(folder).parts
    fixed = next((place for place, part in enumerate(parts) if ANY in part), len(parts))
    return root.joinpath(*parts[:fixed]), "/".join(parts[fixed:])


def _within(found: Found, base: Path, pattern: str) -> Found:
    """The files below the folders that a pattern matches, all if it is empty."""
    if not pattern:
        return found
    depth = pattern.count("/") + 1

    def belongs(file: Path) -> bool:
        parts = file.relative_to(base).parts
        return len(parts) > depth and Path(*parts[:depth]).match(pattern)

    return Found(tuple(filter(belongs, found.files)), found.notes)


def _stem(file: Path, folder: Path, endings: tuple[str, ...], prefix: str) -> str:
    """The name below `folder` without its prefix and ending, in the form in which names are compared."""
    name = comparable(file.relative_to(folder))
    above, slash, name = name[: len(name) - len(comparable(ends_with(name, endings)))].rpartition("/")
    return above + slash + name.removeprefix(comparable(prefix))
