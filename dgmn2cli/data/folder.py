"""Users' own data: two folders of images and label maps, described by a small TOML file, `dataset.toml`."""

from __future__ import annotations

import colorsys
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, TypeAdapter, WithJsonSchema
from pydantic.dataclasses import dataclass as validated

from dgmn2cli.config.schema import NAMES_ONCE, SEVERAL, ClassName, Color, StoredId, Text, setting
from dgmn2cli.data.cityscapes import CATEGORY_OF_CLASS, CLASSES, PALETTE
from dgmn2cli.data.dataset import (
    IGNORE,
    STORED_IDS,
    UNKNOWN_COLOUR,
    IdMap,
    Pair,
    SegmentationSet,
    check_split,
    missing_labels,
)
from dgmn2cli.data.files import SUFFIXES, Found, ends_with, find_files
from dgmn2cli.data.names import comparable, short_names
from dgmn2cli.errors import ConfigError, DataError, Dgmn2Error
from dgmn2cli.files import absence, read_text
from dgmn2cli.validation import STRICT, check, must, parse_toml, raise_faults, schema_of, show

DESCRIPTION = "dataset.toml"
SPLIT = "{split}"  # stands for a split's name in the two folders
ANY = "*"  # stands for any one folder, of one name in both
CITYSCAPES = "cityscapes"  # in place of the classes: Cityscapes' 19, with their colours and groups
MAX_CLASSES = IGNORE  # ids 0..254
MAX_ID = STORED_IDS - 1
MAX_BYTES = 1 << 20
_WHAT = "cannot use the data set's description"


def _pairs(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if not all(key.isascii() and key.isdigit() and len(key) <= 5 and int(key) <= MAX_ID for key in value):
        raise ValueError(f'wanted a table such as 7 = "road", ids from 0 to {MAX_ID}')
    return tuple((int(key), name) for key, name in value.items())


_ID = {"type": "integer", "minimum": 0, "maximum": MAX_ID}
_IDS = {"anyOf": [_ID, {"type": "array", "items": _ID}]}
_ID_MAP = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,5}$"},
    "additionalProperties": {"type": "string"},
    "$comment": f'a table such as 7 = "road", ids from 0 to {MAX_ID}',
}
Folder = Annotated[
    Text,
    must(lambda text: not set("{}") & set(text.replace(SPLIT, "")), f"wanted a folder, {SPLIT} its only placeholder"),
]
NO_IGNORE = must(lambda names: "ignore" not in names, "wanted other names than 'ignore', which stands for no class")
Names = Annotated[tuple[ClassName, ...], Field(max_length=MAX_CLASSES)]
Ids = Annotated[
    tuple[StoredId, ...], BeforeValidator(lambda value: (value,) if type(value) is int else value), WithJsonSchema(_IDS)
]
IdMapping = Annotated[tuple[tuple[StoredId, Text], ...], BeforeValidator(_pairs), WithJsonSchema(_ID_MAP)]


@validated(frozen=True, config=ConfigDict(**STRICT, defer_build=True))
class FolderDescription:
    """What `dataset.toml` says; paths are relative to it, and `{split}` in them stands for the split's name."""

    classes: Annotated[Names, Field(min_length=1), NAMES_ONCE, SEVERAL, NO_IGNORE] = Field(
        description="The class names; class ids are their positions."
    )
    images: Folder = setting("images/{split}", "Folder of the images, searched with its subfolders; * is any folder.")
    labels: Folder = setting("labels/{split}", "Folder of the label maps, likewise.")
    image_prefix: Text = setting("", "What image names begin with.")
    label_prefix: Text = setting("", "What replaces the image's prefix in the name of its label map.")
    image_suffix: Text = setting("", "What image names end in; empty: any image.")
    label_suffix: Text = setting(".png", "What replaces the image's suffix in the name of its label map.")
    label_format: Literal["ids", "colour"] = setting(
        "ids", "What a label map's pixels hold: class ids, or the colours of `palette`."
    )
    palette: tuple[Color, ...] = setting((), "Red, green, blue of each class; empty: colours are chosen.")
    ignore: Ids = setting((IGNORE,), "Stored ids that are ignored.")
    reduce_zero_label: StrictBool = setting(False, "Stored 0 is ignored and every other id is one less.")
    id_map: IdMapping = setting((), 'Stored id = class name or "ignore", for files whose ids are not the positions.')
    unlisted: Literal["refuse", "ignore"] = setting("refuse", "What a stored id (or colour) without a meaning is.")
    categories: Names = setting((), "The group of each class; empty: none.")
    splits: tuple[Text, ...] = setting((), "The splits' names, the one to evaluate on last; empty: found by folders.")
    title: Text = setting("", "What the data set is called.")
    source: Text = setting("", "Where it comes from.")
    licence: Text = setting("", "Under which terms.")
    note: Text = setting("", "What one should know about it.")


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[FolderDescription]:
    return TypeAdapter(FolderDescription)


def description_schema() -> dict[str, Any]:
    """The JSON schema of a `dataset.toml`."""
    return schema_of(_adapter())


def load_description(path: str | Path) -> FolderDescription:
    """Reads and checks a description.

    Raises:
        ConfigError: unreadable, not TOML, unknown keys or wrong values; all are named at once.
        ResourceError: the file may not be read.
    """
    path = Path(path)
    text = read_text(path, MAX_BYTES, _WHAT, kind=ConfigError, hint=f"It should be a {DESCRIPTION}.")
    try:
        raw = parse_toml(text)
    except ValueError as error:
        raise ConfigError(_WHAT, where=path, why=str(error)) from error
    if raw.get("classes") == CITYSCAPES:
        named = {"classes": CLASSES, "palette": PALETTE.tolist(), "categories": CATEGORY_OF_CLASS}
        raw = {**named, **raw, "classes": list(CLASSES)}
    found = check(_adapter(), raw)
    faults = [str(fault) for fault in found] if isinstance(found, list) else _contradictions(found)
    if faults or isinstance(found, list):
        raise_faults(_WHAT, faults, path)
    return found


def is_description(path: Path) -> bool:
    """Whether a file is a TOML file with `classes`, as descriptions have them and configurations do not."""
    try:
        return path.suffix == ".toml" and "classes" in parse_toml(read_text(path, MAX_BYTES, _WHAT, kind=ConfigError))
    except (ValueError, Dgmn2Error):
        return False


def _contradictions(found: FolderDescription) -> list[str]:
    """Faults between keys that are each well-formed."""
    count = len(found.classes)
    faults = [
        f"{key}: {given} entries for {count} classes"
        for key, given in (("palette", len(found.palette)), ("categories", len(found.categories)))
        if given not in (0, count)
    ]
    for stored, name in found.id_map:
        if name != "ignore" and name not in found.classes:
            faults.append(f"id_map.{stored}: {show(name)} is none of the classes")
    if found.reduce_zero_label and found.id_map:
        faults.append("reduce_zero_label and id_map: only one of them can be used")
    if found.label_format == "colour" and not found.palette:
        faults.append("label_format: 'colour' needs a palette, the colour of each class")
    return faults


def find_description(root: Path) -> Path | None:
    """The description that `root` is or holds, or None."""
    if root.suffix == ".toml" and os.path.isfile(root):
        return root
    return root / DESCRIPTION if os.path.isfile(root / DESCRIPTION) else None


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


def open_folder(
    path: str | Path, split: str = "train", *, root: Path | None = None, labels: bool = True
) -> SegmentationSet:
    """One split of a user's data set.

    Args:
        path: the description's path.
        root: where its folders start; where it lies if None.
        labels: False to use the images only.

    Raises:
        ConfigError: the description is wrong.
        DataError: no such folder, no images, or images without a label map (all are named).
    """
    check_split(split)
    path = Path(path)
    said = load_description(path)
    layout = Layout(
        (said.images.replace(SPLIT, split), said.labels.replace(SPLIT, split)),
        (said.image_suffix, said.label_suffix),
        (said.image_prefix, said.label_prefix),
    )
    source, root = (path, path.parent) if root is None else (root, root)
    found = open_folders(source, root, split, layout, id_map(said), said.classes, said.palette, labels=labels)
    return replace(found, categories=said.categories)


@dataclass(frozen=True)
class Layout:
    """Where the files of a split lie, and how an image's name becomes its label map's: of images, of label maps."""

    folders: tuple[str, str]  # they may be the same; `*` is any one folder
    suffixes: tuple[str, str]  # what names end in; an image's may be empty: any image
    prefixes: tuple[str, str] = ("", "")  # what names begin with


def open_folders(
    source: Path,
    root: Path,
    split: str,
    layout: Layout,
    ids: IdMap,
    classes: tuple[str, ...],
    palette: Sequence[tuple[int, int, int]],
    *,
    labels: bool = True,
) -> SegmentationSet:
    """One split: the images with their label maps, the label files that no image belongs to, and notes.

    Args:
        source: what errors name as the data set.
        layout: of the split, from `root` on.
        palette: the classes' colours; empty: they are chosen.
        labels: False to use the images only.

    Raises:
        DataError: no such folder, no images, or images without a label map (all are named).
    """
    (images_dir, of_images), (labels_dir, of_labels) = (_base(root, folder) for folder in layout.folders)
    suffixes, prefixes = layout.suffixes, layout.prefixes
    endings = (suffixes[0],) if suffixes[0] else SUFFIXES
    what, hint = "cannot open the data set", "Check `images` and `image_suffix` in its description, and the split."
    if not os.path.isdir(images_dir):
        raise DataError(what, where=images_dir, why=absence(images_dir, "folder"), hint=hint)
    found = _within(find_files(images_dir, endings), images_dir, of_images)
    there = Found((), ())
    if os.path.isdir(labels_dir) and (labels or images_dir in (labels_dir, *labels_dir.parents)):
        there = _within(find_files(labels_dir, (suffixes[1],), name_others=False), labels_dir, of_labels)
    label_of = {_stem(file, labels_dir, (suffixes[1],), prefixes[1]): file for file in there.files}
    stems = {file: _stem(file, images_dir, endings, prefixes[0]) for file in found.files}
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
        label = label_of.get(stem, labels_dir / _renamed(stem, prefixes[1], suffixes[1])) if labels else None
        if labels and stem not in label_of:
            faults.append(f"{image}: there is no {label}")
        pairs.append(Pair(name, image, label, ids))
    if faults:
        raise missing_labels("folder", source, faults, len(images))
    often_named = often.items() if labels else ()
    shared = [f"{label_of[stem]}: {count} images have this label map" for stem, count in often_named if count > 1]
    known = {pair.label for pair in pairs} | set(images)
    unmatched = tuple(file for file in there.files if file not in known) if labels else ()
    notes = (*found.notes, *there.notes, *shared)
    colours = np.array(palette, np.uint8) if palette else chosen_palette(len(classes))
    return SegmentationSet(source, split, tuple(pairs), classes, colours, unmatched=unmatched, notes=notes)


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


def _renamed(stem: str, prefix: str, suffix: str) -> str:
    folder, slash, name = stem.rpartition("/")
    return f"{folder}{slash}{prefix}{name}{suffix}"


def _stem(file: Path, folder: Path, endings: tuple[str, ...], prefix: str) -> str:
    """The name below `folder` without its prefix and ending, in the form in which names are compared."""
    name = comparable(file.relative_to(folder))
    above, slash, name = name[: len(name) - len(comparable(ends_with(name, endings)))].rpartition("/")
    return above + slash + name.removeprefix(comparable(prefix))
