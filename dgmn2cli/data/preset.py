"""Known data sets: packaged descriptions of their layouts and of what their stored ids mean in Cityscapes' classes."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dgmn2cli.data.dataset import IGNORE, IdMap, LabelMapping, SegmentationSet
from dgmn2cli.data.folder import SPLIT, FolderDescription, id_map, load_description, open_folder
from dgmn2cli.errors import ConfigError, DataError, shown
from dgmn2cli.resources import preset_dir

LOOKED_AT = 2000  # files of a folder whose names are looked at


@dataclass(frozen=True)
class Preset:
    """A known data set."""

    name: str  # what `--dataset` takes
    path: Path  # of its description
    said: FolderDescription  # what the description says

    @property
    def split(self) -> str:
        """The split to evaluate on."""
        return self.said.splits[-1]

    def mapping(self) -> LabelMapping:
        """How its stored ids become classes."""
        ids = id_map(self.said)
        return LabelMapping(self.name, ids.sha256, without(ids, self.said.classes))

    def describe(self) -> dict[str, Any]:
        """What a user may want to know of it: in words, where its files lie, how stored ids become classes."""
        words = {key: getattr(self.said, key) for key in ("title", "source", "licence", "note")}
        images, labels = (f"{folder}/{prefix}*{suffix}" for folder, prefix, suffix in self._parts())
        files = {"images": images, "labels": labels, "splits": self.said.splits}
        return {"name": self.name, **words, **files, "mapping": self.mapping()}

    def splits_in(self, root: Path) -> tuple[str, ...]:
        """The splits under `root` that have images and label maps."""
        return tuple(
            split
            for split in self.said.splits
            if all(_has(root, folder.replace(SPLIT, split), *ends) for folder, *ends in self._parts())
        )

    def _parts(self) -> tuple[tuple[str, str, str], ...]:
        """Of images and of label maps: folder, what names begin with, what they end in."""
        said = self.said
        return (said.images, said.image_prefix, said.image_suffix), (said.labels, said.label_prefix, said.label_suffix)


def _has(root: Path, pattern: str, prefix: str, suffix: str) -> bool:
    """Whether the folders that a pattern matches hold a file of such a name."""
    for folder in root.glob(pattern):
        names = (name for _, _, names in os.walk(folder) for name in names)
        if any(name.startswith(prefix) and name.endswith(suffix) for name in islice(names, LOOKED_AT)):
            return True
    return False


@lru_cache(maxsize=1)
def presets() -> dict[str, Preset]:
    """All known data sets by name.

    Raises:
        ResourceError: the installation lacks them.
    """
    paths = sorted(preset_dir().glob("*.toml"))
    return {path.stem: Preset(path.stem, path, load_description(path)) for path in paths}


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ConfigError: there is none; a similar name is suggested.
    """
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"Did you mean {near[0]}?" if near else "See `dgmn2 data presets`."
        raise ConfigError("no such data set", where=shown(name), why=f"known are {', '.join(known)}", hint=hint)
    return known[name]


def open_preset(name: str, root: str | Path, split: str | None = None) -> SegmentationSet:
    """One split of the known data set `name` under `root`.

    Raises:
        ConfigError: no such data set.
        DataError: it is not laid out like that (the preset that it is laid out like is named), or lacks label maps.
    """
    preset, root = find_preset(name), Path(root)
    try:
        data = open_folder(preset.path, split or preset.split, root=root)
        wanted, found = preset.said.label_suffix, [pair.label for pair in data.pairs if pair.label is not None]
        if other := next((label for label in found if not label.name.endswith(wanted)), None):
            raise DataError("the label maps are another data set's", where=other, why=f"wanted names in {wanted}")
    except DataError as error:
        others = [other for other in recognise(root) if other != name]
        if others:
            error.hint = f"It is laid out like {' and '.join(others)}: use --dataset {others[0]}."
        elif not error.faults:
            said = preset.said
            error.hint = f"{said.title} has {said.images}/*{said.image_suffix} and {said.labels}/*{said.label_suffix}."
        raise
    return replace(data, mapping=preset.mapping())


def recognise(root: Path) -> list[str]:
    """The presets that a folder is laid out like; of several the ones with the deepest folders, which say most."""
    fitting = {name: preset.said.images.count("/") for name, preset in presets().items() if preset.splits_in(root)}
    return [name for name, depth in fitting.items() if depth == max(fitting.values())]


def without(ids: IdMap, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that no stored id becomes."""
    made = set(ids.table[ids.legal].tolist()) - {IGNORE}
    return tuple(name for index, name in enumerate(classes) if index not in made)


def stored_ids(ids: IdMap, count: int) -> np.ndarray:
    """(256,) uint16: a stored id that becomes each class; where there is none, and beyond `count`, an ignored one."""
    legal = np.flatnonzero(ids.legal)
    ignored = legal[ids.table[legal] == IGNORE]
    table = np.full(256, ignored[0], np.uint16)
    for index in range(count):
        found = legal[ids.table[legal] == index]
        if len(found):
            table[index] = found[0]
    return table
