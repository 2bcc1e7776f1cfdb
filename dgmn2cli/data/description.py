"""The description of a data set of the user's own: `dataset.toml`, its keys, and what is wrong in one."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgmn2cli.errors import ConfigError

IGNORE = 255  # the id of ignored pixels in every label this program hands on
DESCRIPTION = "dataset.toml"
MAX_CLASSES = IGNORE  # ids 0..254
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class FolderDescription:
    """What `dataset.toml` says; paths are relative to it, and `{split}` in them stands for the split's name.

    Attributes:
        classes: the class names; class ids are their positions.
        images, labels: the two folders, searched with their subfolders.
        image_suffix: what picture names end in; empty: any of .png, .jpg, .jpeg, .webp, .bmp.
        label_suffix: what replaces the picture's suffix in the name of its label map.
        palette: a colour [red, green, blue] for each class; empty: colours are chosen.
        ignore: stored ids that are ignored.
        reduce_zero_label: stored 0 is ignored and every other id is one less.
        id_map: stored id -> class name or "ignore", for files whose ids are not the positions.
        unlisted: what a stored id missing from `id_map` is: "refuse" (a fault) or "ignore".
        categories: the group of each class; empty: none.
    """

    classes: tuple[str, ...]
    images: str = "images/{split}"
    labels: str = "labels/{split}"
    image_suffix: str = ""
    label_suffix: str = ".png"
    palette: tuple[tuple[int, int, int], ...] = ()
    ignore: tuple[int, ...] = (IGNORE,)
    reduce_zero_label: bool = False
    id_map: tuple[tuple[int, str], ...] = ()
    unlisted: str = "refuse"
    categories: tuple[str, ...] = ()


def load_description(path: str | Path) -> FolderDescription:
    """Reads and checks a description.

    Raises:
        ConfigError: unreadable, not TOML, unknown keys or wrong values; all are named at once.
    """
    path = Path(path)
    what = "cannot use the data set's description"
    try:
        with path.open("rb") as file:
            raw = tomllib.loads(file.read(_MAX_BYTES).decode())
    except OSError as error:
        raise ConfigError(what, where=path, why=error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(what, where=path, why=f"it is not TOML: {error}") from error
    faults: list[str] = []
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in _READERS:
            faults.append(f"{key}: unknown key; known are {', '.join(_READERS)}")
            continue
        try:
            values[key] = _READERS[key](value)
        except ValueError as error:
            faults.append(f"{key}: {error}")
    if "classes" not in raw:
        faults.append("classes: missing; give a list of class names")
    if not faults:
        faults = _contradictions(values)
    if faults:
        why = faults[0] if len(faults) == 1 else f"{len(faults)} faults, listed above"
        raise ConfigError(what, where=path, why=why, faults=faults)
    return FolderDescription(**values)


def _contradictions(values: dict[str, Any]) -> list[str]:
    """Faults between keys that are each well-formed."""
    classes = values["classes"]
    faults = [
        f"{key}: {len(values[key])} entries for {len(classes)} classes"
        for key in ("palette", "categories")
        if values.get(key) and len(values[key]) != len(classes)
    ]
    for stored, name in values.get("id_map", ()):
        if name != "ignore" and name not in classes:
            faults.append(f"id_map.{stored}: {name!r} is none of the classes")
    if values.get("reduce_zero_label") and values.get("id_map"):
        faults.append("reduce_zero_label and id_map: only one of them can be used")
    return faults


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name.strip() for name in value):
        raise ValueError(f"expected a list of names, found {value!r:.80}")
    return tuple(value)


def _classes(value: object) -> tuple[str, ...]:
    names = _names(value)
    if len(set(names)) < len(names) or "ignore" in names:
        raise ValueError("each name must be there once, and none may be 'ignore'")
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{len(names)} classes; label maps of 8 bits hold {MAX_CLASSES} at most")
    return names


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r:.80}")
    return value


def _folder(value: object) -> str:
    try:
        _text(value).format(split="train")
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"expected a folder, {{split}} its only placeholder, found {value!r:.80}") from error
    return _text(value)


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _palette(value: object) -> tuple[tuple[int, ...], ...]:
    rows: list[Any] = value if isinstance(value, list) else [None]
    if not all(isinstance(row, list) and len(row) == 3 and all(map(_is_byte, row)) for row in rows):
        raise ValueError("expected a list of colours [red, green, blue], each 0 to 255")
    return tuple(tuple(row) for row in rows)


def _ignore(value: Any) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, list) else (value,)
    if not all(map(_is_byte, ids)):
        raise ValueError(f"expected an id from 0 to 255 or a list of them, found {value!r:.80}")
    return ids


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, found {value!r:.80}")
    return value


def _id_map(value: object) -> tuple[tuple[int, str], ...]:
    entries: list[tuple[str, Any]] = list(value.items()) if isinstance(value, dict) else [("", None)]
    if not all(key.isascii() and key.isdigit() and int(key) <= 255 and isinstance(name, str) for key, name in entries):
        raise ValueError('expected a table such as 7 = "road", ids from 0 to 255')
    return tuple((int(key), name) for key, name in entries)


def _unlisted(value: object) -> str:
    if value not in ("refuse", "ignore"):
        raise ValueError(f'expected "refuse" or "ignore", found {value!r:.80}')
    return str(value)


_READERS: dict[str, Callable[[object], Any]] = {
    "classes": _classes,
    "images": _folder,
    "labels": _folder,
    "image_suffix": _text,
    "label_suffix": _text,
    "palette": _palette,
    "ignore": _ignore,
    "reduce_zero_label": _flag,
    "id_map": _id_map,
    "unlisted": _unlisted,
    "categories": _names,
}


def find_description(root: Path) -> Path | None:
    """The description that `root` is or holds, or None."""
    if root.suffix == ".toml" and os.path.isfile(root):
        return root
    return root / DESCRIPTION if os.path.isfile(root / DESCRIPTION) else None
