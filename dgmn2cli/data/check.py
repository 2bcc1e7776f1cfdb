"""The check of a data set before anything is computed from it: every fault named, every class counted."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
import simplejpeg

from dgmn2cli.data.dataset import IGNORE, IdMap, Pair, SegmentationSet, check_sizes, count_ids
from dgmn2cli.data.images import MAX_PIXELS, decode_file, image_header
from dgmn2cli.errors import DataError, Dgmn2Error, ResourceError
from dgmn2cli.files import atomic_write, hash_file, read_bounded
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.version import __version__

_SHOWN = 5  # notes of a kind
_WEIGHT_OFFSET = 1.02
_LARGEST = 1 << 28  # bytes of a file of findings: some 500,000 images
_VERSION = f"dgmn2cli {__version__}, simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__}"
_T = TypeVar("_T")


@dataclass(frozen=True)
class ClassCount:
    """One class over all label maps: pixels, share of the pixels that are not ignored, images, suggested weight."""

    name: str
    pixels: int
    share: float
    images: int
    weight: float


@dataclass(frozen=True)
class DataReport:
    """What the check of one split found."""

    root: str
    split: str
    kind: str
    pairs: int
    faults: tuple[str, ...]  # one line per broken pair, naming the file
    notes: tuple[str, ...]  # what is odd but harms nothing
    sizes: dict[str, int]  # "WIDTHxHEIGHT" -> number of images
    classes: tuple[ClassCount, ...]
    ignored_share: float  # share of all pixels that is ignored

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and which classes are absent."""
        absent = ", ".join(entry.name for entry in self.classes if not entry.pixels) if self.sizes else ""
        return (*self.notes, f"classes without a pixel: {absent}") if absent else self.notes


@dataclass(frozen=True)
class _PairFacts:
    fault: str
    size: tuple[int, int]
    counts: np.ndarray  # (256,) int64: pixels of each class id and of IGNORE
    orientation: int = 1
    notes: tuple[str, ...] = ()


class Remembered:
    """Findings of earlier checks by file and kind, one JSON file for each data set, in the cache.

    A file counts as unchanged if its path, size and time of change are the same. What cannot be read, or is damaged, or
    was written by another version, is as if nothing were remembered.

    Args:
        root: the data set.
        folder: where the findings are kept; None: they are not.
    """

    def __init__(self, root: Path, folder: Path | None) -> None:
        name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
        self._path = None if folder is None else folder / f"{name}.json"
        self._files: dict[str, Any] = {} if self._path is None else _read_findings(self._path)
        self._changed = False

    def recall(self, path: Path, kind: str, find: Callable[[], _T]) -> _T:
        """What was found out about a file, or `find()`, which is remembered unless it raises; JSON types only."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return find()
        stamp, key = [status.st_size, status.st_mtime_ns], os.path.abspath(path)
        known = self._files.get(key, [None, {}])
        if known[0] == stamp and kind in known[1]:
            return known[1][kind]
        found = find()
        self._files[key] = [stamp, {**(known[1] if known[0] == stamp else {}), kind: found}]
        self._changed = True
        return found

    def save(self) -> None:
        """Keeps what is new for the next run, if it can be kept."""
        if self._path is None or not self._changed:
            return
        body = json.dumps({"version": _VERSION, "files": self._files}).encode()
        with suppress(ResourceError):
            atomic_write(self._path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            self._changed = False


def check_dataset(
    data: SegmentationSet,
    *,
    thorough: bool = True,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    observer: Observer = Silent(),
    memory: Path | None = None,
) -> DataReport:
    """Reads every pair: sizes, ids, damage. Nothing is kept but the counts.

    Args:
        thorough: decode the images; otherwise only their headers are looked at, and a PNG's checksums.
        memory: the folder that remembers what was found in files that have not changed since; None: nothing does.
    """
    remembered = Remembered(data.root, memory if thorough else None)
    observer.begin(f"checking {data.split}", len(data))
    facts: list[_PairFacts] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for fact in pool.map(lambda pair: _look(pair, remembered, thorough, max_pixels), data.pairs):
            facts.append(fact)
            observer.advance()
    observer.end()
    remembered.save()
    counts = np.sum([fact.counts for fact in facts], axis=0)
    occurrences = np.sum([fact.counts > 0 for fact in facts], axis=0)
    sizes = Counter(f"{fact.size[1]}x{fact.size[0]}" for fact in facts if not fact.fault)
    pixels = counts[: len(data.classes)]
    shares = pixels / max(int(pixels.sum()), 1)
    classes = tuple(
        ClassCount(name, int(pixels[i]), float(shares[i]), int(occurrences[i]), float(weight))
        for i, (name, weight) in enumerate(zip(data.classes, class_weights(pixels), strict=True))
    )
    return DataReport(
        root=str(data.root),
        split=data.split,
        kind=data.kind,
        pairs=len(data),
        faults=tuple(fact.fault for fact in facts if fact.fault),
        notes=(*_file_notes(data, facts), *(_id_notes(data, classes) if sizes else ())),
        sizes=dict(sizes.most_common()),
        classes=classes,
        ignored_share=float(counts[IGNORE] / max(int(counts.sum()), 1)),
    )


def fingerprint(data: SegmentationSet, workers: int = 1, memory: Path | None = None) -> str:
    """SHA-256 over the names and contents of all images and labels, in order; not over where they lie.

    Args:
        memory: the folder that remembers the hashes of files that have not changed since; None: nothing does.

    Raises:
        ResourceError: a file is gone.
    """
    remembered = Remembered(data.root, memory)
    files = [path for pair in data.pairs for path in (pair.image, pair.label) if path is not None]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        hashes = list(pool.map(lambda path: remembered.recall(path, "sha256", lambda: hash_file(path)), files))
    remembered.save()
    return hashlib.sha256(json.dumps([[pair.name for pair in data.pairs], hashes]).encode()).hexdigest()


def require_sound(report: DataReport) -> DataReport:
    """The report itself, if it has no faults.

    Raises:
        DataError: with every fault.
    """
    if report.faults:
        why = f"{len(report.faults)} of {report.pairs} pairs of split {report.split} cannot be used"
        hint = "Mend or remove them; `dgmn2 data check` shows them again."
        raise DataError("the data set has faults", where=report.root, why=why, hint=hint, faults=report.faults)
    return report


def class_weights(pixels: np.ndarray) -> np.ndarray:
    """(N,) float64 weights for a loss, their mean 1: 1 / ln(1.02 + share), so that rare classes weigh up to 50 times.

    Classes without pixels get the mean, 1; they are left out of the scaling. Source: ENet, section 5.1.
    """
    present = pixels > 0
    weights = np.ones(len(pixels))
    if present.any():
        raw = 1 / np.log(_WEIGHT_OFFSET + pixels[present] / pixels.sum())
        weights[present] = raw / raw.mean()
    return weights


def _look(pair: Pair, remembered: Remembered, thorough: bool, max_pixels: int) -> _PairFacts:
    counts = np.zeros(256, np.int64)
    try:
        if thorough:
            height, width, orientation, notes = remembered.recall(
                pair.image, "image", lambda: _image_facts(pair.image, max_pixels)
            )
            if height * width > max_pixels:  # remembered from a run with another limit
                image_header(pair.image, max_pixels)
        else:
            header = image_header(pair.image, max_pixels)
            height, width, orientation, notes = header.height, header.width, header.orientation, []
        if pair.label is None:
            raise DataError("the image has no label map", where=pair.image, hint="Use a split that has labels.")
        size, ids = remembered.recall(pair.label, _label_kind(pair.ids), lambda: _label_facts(pair, max_pixels))
        stored = dict(ids)
        pair.ids.check(stored, pair.label)
        check_sizes((height, width), tuple(size), pair)
    except DataError as error:
        return _PairFacts(str(error), (0, 0), counts)
    np.add.at(counts, pair.ids.table[list(stored)], list(stored.values()))
    return _PairFacts("", (height, width), counts, orientation, tuple(f"{pair.image}: {note}" for note in notes))


def _image_facts(path: Path, max_pixels: int) -> list[Any]:
    """Displayed height and width, orientation, notes."""
    _, header, notes = decode_file(path, max_pixels)
    return [header.height, header.width, header.orientation, notes]


def _label_facts(pair: Pair, max_pixels: int) -> list[Any]:
    """Height and width; pixels of each stored id."""
    assert pair.label is not None
    stored = pair.ids.read(pair.label, max_pixels)
    return [list(stored.shape), list(count_ids(stored).items())]


def _label_kind(ids: IdMap) -> str:
    """What the findings about a label map depend on, besides the file."""
    if ids.colours is None:
        return "ids"
    return "colours " + hashlib.sha256(ids.colours.tobytes() + ids.legal.tobytes()).hexdigest()[:16]


def _file_notes(data: SegmentationSet, facts: list[_PairFacts]) -> Iterator[str]:
    """What is odd about the files, at most a few lines for each kind."""
    yield from data.notes
    yield from _some([f"{path}: no image belongs to this label map" for path in data.unmatched], "label maps")
    yield from _some([note for fact in facts for note in fact.notes], "notes")
    turned = [pair for pair, fact in zip(data.pairs, facts, strict=True) if fact.orientation != 1]
    if turned:
        more = f" and {len(turned) - 1} more" if len(turned) > 1 else ""
        yield (
            f"{turned[0].image}{more}: the EXIF orientation turns what is displayed, but no label map is turned; "
            "where labels were drawn on the pixels as stored, remove the tag (`exiftool -Orientation= FILE`)"
        )


def _some(lines: list[str], what: str) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"{len(lines) - _SHOWN} more such {what}"]


def _id_notes(data: SegmentationSet, classes: tuple[ClassCount, ...]) -> Iterator[str]:
    telltale = data.pairs[0].ids.telltale
    if telltale and all(pair.ids.telltale for pair in data.pairs) and any(entry.pixels for entry in classes):
        beyond = {int(target) for target in data.pairs[0].ids.table[telltale:]} - {IGNORE}
        if not any(classes[target].pixels for target in beyond):
            yield f"no label map holds an id from {telltale} on: are they training ids under a wrong name?"


def _read_findings(path: Path) -> dict[str, Any]:
    try:
        digest, _, body = read_bounded(path, _LARGEST).partition(b"\n")
    except Dgmn2Error:
        return {}
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return {}
    content = json.loads(body)
    return content["files"] if content["version"] == _VERSION else {}
