"""Users' own data: two folders of images and label maps, described by a small TOML file, `dataset.toml`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, TypeAdapter, WithJsonSchema
from pydantic.dataclasses import dataclass as validated

from dgmn2cli.config.schema import NAMES_ONCE, SEVERAL, ClassName, Color, StoredId, Text, setting
from dgmn2cli.data.cityscapes import CATEGORY_OF_CLASS, CLASSES, PALETTE
from dgmn2cli.data.dataset import IGNORE, STORED_IDS, UNKNOWN_COLOUR, IdMap, SegmentationSet
from dgmn2cli.data.layout import Layout, open_folders
from dgmn2cli.errors import ConfigError, Dgmn2Error
from dgmn2cli.files import read_text
from dgmn2cli.validation import STRICT, check, must, parse_toml, raise_faults, schema_of, show

DESCRIPTION = "dataset.toml"
SPLIT = "{split}"  # stands for a split's name in the two folders
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
    if found.label_format == "colour":
        faults += _colour_faults(found)
    return faults


def _colour_faults(found: FolderDescription) -> Iterator[str]:
    """What keeps colours from telling classes apart."""
    if not found.palette:
        yield "label_format: 'colour' needs a palette, the colour of each class"
    if found.reduce_zero_label:
        yield 'reduce_zero_label: label maps of colours hold no 0; leave it out, or say label_format = "ids"'
    named: dict[Color, str] = {}
    for name, colour in zip(found.classes, found.palette, strict=False):
        if named.setdefault(colour, name) != name:
            yield f"palette: {show(named[colour])} and {show(name)} have one colour, {list(colour)}"


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
    path = Path(path)
    said = load_description(path)
    layout = Layout(
        images=said.images.replace(SPLIT, split),
        labels=said.labels.replace(SPLIT, split),
        image_suffix=said.image_suffix,
        label_suffixes={said.label_suffix: id_map(said)},
        image_prefix=said.image_prefix,
        label_prefix=said.label_prefix,
    )
    source, root = (path, path.parent) if root is None else (root, root)
    return open_folders(source, root, split, layout, said.classes, said.palette, said.categories, labels=labels)
