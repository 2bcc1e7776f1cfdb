"""Owns what a data set is to the program: named pairs of picture and label, the classes, and reading one pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgmn2cli.data.description import IGNORE as IGNORE
from dgmn2cli.data.images import MAX_PIXELS, read_image, read_label
from dgmn2cli.data.transforms import Sample
from dgmn2cli.errors import DataError


@dataclass(frozen=True, eq=False)
class IdMap:
    """How the ids stored in label files become classes.

    Attributes:
        name: what the stored ids are called in messages, e.g. "labelIds".
        table: (256,) uint8: the class of each stored id, or `IGNORE`.
        legal: (256,) bool: the stored ids that may occur.
        hint: what to say when another one does.
        telltale: where 255 occurs, an id from this one on must occur, too; otherwise the file holds other ids.
    """

    name: str
    table: np.ndarray
    legal: np.ndarray
    hint: str = ""
    telltale: int = 0

    @classmethod
    def of(cls, name: str, classes: Mapping[int, int], hint: str = "", telltale: int = 0) -> IdMap:
        """The map that allows the keys of `classes` and gives each its value."""
        table, legal = np.full(256, IGNORE, np.uint8), np.zeros(256, bool)
        for stored, target in classes.items():
            table[stored], legal[stored] = target, True
        return cls(name, table, legal, hint, telltale)

    def apply(self, stored: np.ndarray, where: object) -> np.ndarray:
        """(H, W) uint8 classes of (H, W) uint8 stored ids.

        Raises:
            DataError: an id occurs that is not legal, or the file seems to hold other ids altogether.
        """
        present = np.bincount(stored.ravel(), minlength=256) > 0
        wrong = np.flatnonzero(present & ~self.legal)
        why = ""
        if wrong.size:
            some = ", ".join(str(i) for i in wrong[:5]) + (", ..." if wrong.size > 5 else "")
            why = f"it holds {some}, which {'is' if wrong.size == 1 else 'are'} not among the {self.name}"
        elif self.telltale and present[255] and not present[self.telltale : 255].any():
            why = f"it holds 255 and no id from {self.telltale} on, which is not what {self.name} look like"
        if why:
            raise DataError("the label map is wrong", where=where, why=why, hint=self.hint)
        return self.table[stored]


@dataclass(frozen=True)
class Pair:
    """A picture and its label map (None: the split has no labels), and what the ids in that map mean."""

    name: str
    image: Path
    label: Path | None
    ids: IdMap


@dataclass(frozen=True, eq=False)
class SegmentationSet:
    """One split of a data set.

    Attributes:
        root: the folder or description it was opened from.
        split: its name.
        pairs: in the order of their names.
        classes: N names; class ids are 0..N-1, and `IGNORE`.
        palette: (N, 3) uint8, red green blue.
        categories: N names of the groups the classes belong to; empty where there are none.
        kind: "cityscapes" or "folder".
        unmatched: label files that no picture belongs to.
    """

    root: Path
    split: str
    pairs: tuple[Pair, ...]
    classes: tuple[str, ...]
    palette: np.ndarray
    categories: tuple[str, ...] = ()
    kind: str = "folder"
    unmatched: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def read_image(self, index: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The picture (H, W, 3) uint8, blue green red; errors as `images.read_image`."""
        return read_image(self.pairs[index].image, max_pixels)

    def read_label(self, index: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The label (H, W) uint8: class ids and `IGNORE`.

        Raises:
            DataError: there is none, it is unreadable, or it holds an id that has no meaning.
        """
        pair = self.pairs[index]
        if pair.label is None:
            raise DataError("the picture has no label map", where=pair.image, hint="Use a split that has labels.")
        return pair.ids.apply(read_label(pair.label, max_pixels), pair.label)

    def read(self, index: int, *, max_pixels: int = MAX_PIXELS) -> Sample:
        """Picture and label.

        Raises:
            DataError: as `read_image` and `read_label`; also where their sizes differ.
        """
        image = self.read_image(index, max_pixels=max_pixels)
        label = self.read_label(index, max_pixels=max_pixels)
        check_sizes(image.shape[:2], label.shape, self.pairs[index])
        return Sample(image, label)


def check_sizes(image: tuple[int, ...], label: tuple[int, ...], pair: Pair) -> None:
    """Raises DataError where a picture (height, width) and its label differ in size."""
    if image != label:
        why = f"it is {label[1]}x{label[0]}, its picture is {image[1]}x{image[0]}"
        raise DataError("the label map does not fit", where=pair.label, why=why, hint="Export the pair again.")


def missing_labels(kind: str, root: Path, faults: list[str], pictures: int) -> DataError:
    """The error for pictures without label maps; `faults` has a line for each."""
    why = f"{len(faults)} of {pictures} pictures have no label map"
    return DataError(f"the {kind} data set is not complete", where=root, why=why, faults=faults)
