"""What a data set is to the program: named pairs of image and label map, the classes, and reading one pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgmn2cli.data.images import MAX_PIXELS, image_header, read_image, read_label, read_label_colours
from dgmn2cli.data.transforms import IGNORE as IGNORE
from dgmn2cli.data.transforms import Sample
from dgmn2cli.errors import DataError

STORED_IDS = 1 << 16  # label maps have 16 bits at most
UNKNOWN_COLOUR = STORED_IDS - 1  # stands for a colour that is no class's


@dataclass(frozen=True, eq=False)
class IdMap:
    """How the ids stored in label files become classes."""

    name: str  # what the stored ids are called in messages, e.g. "labelIds".
    table: np.ndarray  # (65536,) uint8: the class of each stored id, or `IGNORE`
    legal: np.ndarray  # (65536,) bool: the stored ids that may occur
    hint: str = ""  # what to say when another one does
    telltale: int = 0  # where 255 occurs, an id from this one on must occur, too; otherwise the file holds other ids
    colours: np.ndarray | None = None  # (N, 3) uint8 red green blue: the files hold these, in place of the ids 0 to N-1

    @classmethod
    def of(
        cls, name: str, classes: Mapping[int, int], hint: str = "", telltale: int = 0, colours: np.ndarray | None = None
    ) -> IdMap:
        """The map that allows the keys of `classes` and gives each its value."""
        table, legal = np.full(STORED_IDS, IGNORE, np.uint8), np.zeros(STORED_IDS, bool)
        stored = np.fromiter(classes, np.int64, len(classes))
        table[stored], legal[stored] = np.fromiter(classes.values(), np.int64, len(classes)), True
        return cls(name, table, legal, hint, telltale, colours)

    @property
    def sha256(self) -> str:
        """Hash over what each of the 65536 stored ids becomes, which of them may occur, and the colours."""
        colours = b"" if self.colours is None else self.colours.tobytes()
        return hashlib.sha256(self.table.tobytes() + np.packbits(self.legal).tobytes() + colours).hexdigest()

    def read(self, path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The stored ids of a file, (H, W) uint8 or uint16; of colours the positions.

        Raises:
            DataError: it cannot be read, or holds a colour that is no class's and not ignored.
        """
        if self.colours is None:
            return read_label(path, max_pixels)
        colours = self.colours.astype(np.int32) @ [1 << 16, 1 << 8, 1]
        order = np.argsort(colours)
        pixels = read_label_colours(path, max_pixels).astype(np.int32) @ [1 << 16, 1 << 8, 1]
        found = order[np.searchsorted(colours[order], pixels).clip(max=len(order) - 1)]
        known = colours[found] == pixels
        if not self.legal[UNKNOWN_COLOUR] and not known.all():
            wrong = np.unique(pixels[~known])
            some = ", ".join(f"[{code >> 16}, {code >> 8 & 255}, {code & 255}]" for code in wrong[:3])
            why = f"it holds {wrong.size} colours that are no class's: {some}{', ...' if wrong.size > 3 else ''}"
            hint = 'Add them to the palette, or say unlisted = "ignore".'
            raise DataError("the label map is wrong", where=path, why=why, hint=hint)
        return np.where(known, found, UNKNOWN_COLOUR).astype(np.uint16)

    def check(self, counts: Mapping[int, int], where: object) -> None:
        """Refuses a file with ids that are not legal, or that seems to hold other ids altogether.

        Args:
            counts: pixels by stored id.

        Raises:
            DataError: as said.
        """
        wrong, why = sorted(stored for stored in counts if not self.legal[stored]), ""
        if wrong:
            some = ", ".join(str(stored) for stored in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
            why = f"it holds {some}, which {'is' if len(wrong) == 1 else 'are'} not among the {self.name}"
        elif self.telltale and 255 in counts and not any(self.telltale <= stored < 255 for stored in counts):
            why = f"it holds 255 and no id from {self.telltale} on, which is not what {self.name} look like"
        if why:
            raise DataError("the label map is wrong", where=where, why=why, hint=self.hint)

    def apply(self, stored: np.ndarray, where: object) -> np.ndarray:
        """(H, W) uint8 classes of (H, W) stored ids; errors as `check`."""
        self.check(count_ids(stored), where)
        return self.table[stored]


def count_ids(stored: np.ndarray) -> dict[int, int]:
    """Pixels by stored id, of those that occur."""
    counts = np.bincount(stored.ravel())
    return {int(stored): int(counts[stored]) for stored in np.flatnonzero(counts)}


@dataclass(frozen=True)
class Pair:
    """An image and its label map (None: the split has no labels), and what the ids in that map mean."""

    name: str
    image: Path
    label: Path | None
    ids: IdMap


@dataclass(frozen=True)
class LabelMapping:
    """How a known data set's stored ids become classes."""

    dataset: str  # the preset's name
    sha256: str  # over what each stored id becomes
    without: tuple[str, ...]  # the classes that none becomes


@dataclass(frozen=True, eq=False)
class SegmentationSet:
    """One split of a data set."""

    root: Path  # the folder or description it was opened from
    split: str  # its name
    pairs: tuple[Pair, ...]  # in the order of their names
    classes: tuple[str, ...]  # N names; class ids are 0..N-1, and `IGNORE`
    palette: np.ndarray  # (N, 3) uint8, red green blue
    categories: tuple[str, ...] = ()  # N names of the groups the classes belong to; empty where there are none
    kind: str = "folder"  # "cityscapes" or "folder"
    unmatched: tuple[Path, ...] = ()  # label files that no image belongs to
    notes: tuple[str, ...] = ()  # what was left out or is odd about the files' names
    mapping: LabelMapping | None = None  # how stored ids become classes, where the data set is a known one
    # what is done to an image when it is read, given its name; its `str` says what
    corruption: Callable[[np.ndarray, str], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def meaning(self) -> str:
        """SHA-256 over the classes' names and over what their label maps' ids become: what no image or label tells."""
        maps = sorted(ids.sha256 for ids in {pair.ids for pair in self.pairs})
        return hashlib.sha256(json.dumps([self.classes, maps]).encode()).hexdigest()

    def read_image(self, index: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The image (H, W, 3) uint8, blue green red; errors as `images.read_image`."""
        pair = self.pairs[index]
        image = read_image(pair.image, max_pixels)
        return image if self.corruption is None else self.corruption(image, pair.name)

    def read_label(self, index: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """The label (H, W) uint8: class ids and `IGNORE`.

        Raises:
            DataError: there is none, it is unreadable, or it holds an id that has no meaning.
        """
        pair = self.pairs[index]
        if pair.label is None:
            raise DataError("the image has no label map", where=pair.image, hint="Use a split that has labels.")
        return pair.ids.apply(pair.ids.read(pair.label, max_pixels), pair.label)

    def read(self, index: int, *, max_pixels: int = MAX_PIXELS) -> Sample:
        """Image and label.

        Raises:
            DataError: as `read_image` and `read_label`; also where their sizes differ.
        """
        image = self.read_image(index, max_pixels=max_pixels)
        label = self.read_label(index, max_pixels=max_pixels)
        check_sizes(image.shape[:2], label.shape, self.pairs[index])
        return Sample(image, label)


def check_sizes(image: tuple[int, ...], label: tuple[int, ...], pair: Pair) -> None:
    """Raises DataError where an image (height, width) and its label map differ in size."""
    if tuple(image) == tuple(label):
        return
    why = f"it is {label[1]}x{label[0]}, its image is {image[1]}x{image[0]}"
    hint = "Export both from the same source, without resizing or cropping either."
    orientation = image_header(pair.image).orientation if tuple(image) == tuple(label[::-1]) else 1
    if orientation >= 5:
        why += f" as displayed: the image's EXIF orientation ({orientation}) turns it, and not the label map"
        hint = (
            "If the labels were drawn on the pixels as stored, remove the tag from the images "
            "(`exiftool -Orientation= FILE`); otherwise turn the label maps."
        )
    raise DataError("the label map does not fit", where=pair.label, why=why, hint=hint)
