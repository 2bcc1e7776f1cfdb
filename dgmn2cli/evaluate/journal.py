"""What is measured so far: a record of each image, and the file that lets a killed evaluation go on."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgmn2cli.errors import ConfigError, DataError
from dgmn2cli.evaluate.analysis.crops import Shown, keep_worst
from dgmn2cli.evaluate.analysis.measure import RECORDS, ImageRecord, Measured, TemperatureCounts
from dgmn2cli.files import atomic_write, read_bounded, to_plain
from dgmn2cli.inference.segmenter import differences

EVERY = 2.0  # seconds between two entries of a journal; what a kill can cost, beside the images under way
SHARE = 20  # writing the journal takes at most one part in so many of the time
SIZE_LIMIT = 1 << 30  # bytes of a journal; half a million images stay below
_VERSION = 2
_DAMAGED = "cannot use the journal of an interrupted evaluation"
_ANEW = "Delete it to start the evaluation anew."


@dataclass(frozen=True)
class Journal:
    """A file that says how far an evaluation is."""

    path: Path  # the file; written whole or not at all, with a digest of its content
    identity: dict[str, Any]  # all that the records depend on; a run goes on only from a journal with the same
    every: float = EVERY  # seconds between two entries


class Tally:
    """What is measured so far; the same whatever the order in which images come.

    Attributes:
        records: by place in the data set.
        temperatures: the sum over all images.
        crops, views: JPEGs of the worst ones, by place.
    """

    def __init__(self, journal: Journal | None = None, seconds: float = 0.0) -> None:
        self.records: dict[int, ImageRecord] = {}
        self.temperatures = TemperatureCounts()
        self.crops: dict[int, Shown] = {}
        self.views: dict[int, Shown] = {}
        self.journal, self._earlier = journal, seconds
        self._began = self._noted = time.monotonic()
        self._cost = 0.0  # seconds that the last entry took

    @property
    def seconds(self) -> float:
        """Spent on what is measured, earlier runs included."""
        return self._earlier + time.monotonic() - self._began

    @property
    def ordered(self) -> list[ImageRecord]:
        """The records in the data set's order."""
        return [self.records[index] for index in sorted(self.records)]

    def counts(self, classes: int) -> np.ndarray:
        """(N, N + 1) int64, the sum over all images of their confusion matrices."""
        empty = np.zeros((classes, classes + 1), np.int64)
        return sum((record.matrix(classes) for record in self.records.values()), start=empty)

    def add(self, index: int, measured: Measured) -> None:
        """Adds the image at `index`; notes it in the journal if the last entry is old enough.

        Raises:
            ValueError: it is in already.
            ResourceError: the journal cannot be written.
        """
        if index in self.records:
            raise ValueError(f"image {index} is counted already")
        self.records[index] = measured.record
        if measured.temperatures is not None:
            self.temperatures.add(measured.temperatures)
        if measured.crop is not None:
            self.crops = keep_worst({**self.crops, index: measured.crop})
        if measured.view is not None:
            self.views = keep_worst({**self.views, index: measured.view})
        wait = max(self.journal.every, SHARE * self._cost) if self.journal is not None else 0.0
        if self.journal is not None and time.monotonic() - self._noted >= wait:
            self.note()

    def note(self) -> None:
        """Writes the journal, where there is one and something to write.

        Raises:
            ResourceError: it cannot be written.
        """
        if self.journal is None or not self.records:
            return
        began, done = time.monotonic(), sorted(self.records)
        body = {
            "version": _VERSION,
            "identity": to_plain(self.journal.identity),
            "done": done,
            "records": [to_plain(self.records[index]) for index in done],
            "temperatures": self.temperatures.to_plain(),
            "crops": _to_plain(self.crops),
            "views": _to_plain(self.views),
            "seconds": self.seconds,
        }
        atomic_write(self.journal.path, json.dumps({**body, "digest": _digest(body)}) + "\n")
        self._noted = time.monotonic()
        self._cost = self._noted - began


def _to_plain(shown: dict[int, Shown]) -> list[list[Any]]:
    return [[index, one.rank, base64.b64encode(one.jpeg).decode()] for index, one in sorted(shown.items())]


def _from_plain(plain: list[list[Any]]) -> dict[int, Shown]:
    return {int(index): Shown(float(rank), base64.b64decode(text)) for index, rank, text in plain}


def start_tally(classes: int, images: int, journal: Journal | None, *, resume: bool) -> Tally:
    """A tally for `images` images, from zero or from where the journal says.

    Args:
        journal: where to note progress; None: nowhere.
        resume: go on from the journal's content; from zero where there is none yet.

    Raises:
        ConfigError: the journal is of another run (the differences are shown), or there is one and `resume` is False.
        DataError: the journal is damaged.
    """
    if journal is None or not journal.path.exists():
        return Tally(journal)
    body = _read(journal.path)
    if not resume:
        why = f"{len(body['done'])} of {images} images are counted"
        hint = "Go on with --resume, or delete it to start anew."
        raise ConfigError("there is the journal of an interrupted evaluation", where=journal.path, why=why, hint=hint)
    found = differences(body["identity"], to_plain(journal.identity), "the journal")
    if found:
        raise ConfigError(
            "cannot go on with another evaluation's journal",
            where=journal.path,
            why=f"{len(found)} settings differ",
            faults=found,
            hint="Use the same settings, or delete the journal to start anew.",
        )
    tally = Tally(journal, float(body["seconds"]))
    try:
        records = RECORDS.validate_python(body["records"])
        tally.records = dict(zip(map(int, body["done"]), records, strict=True))
        tally.counts(classes)
        tally.temperatures = TemperatureCounts.of_plain(body["temperatures"])
        tally.crops, tally.views = _from_plain(body["crops"]), _from_plain(body["views"])
        fits = set(tally.records) <= set(range(images))
    except (TypeError, ValueError, KeyError):
        fits = False
    if not fits:
        raise DataError(_DAMAGED, where=journal.path, why="its records do not fit the data set", hint=_ANEW)
    return tally


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    content = read_bounded(path, SIZE_LIMIT, _DAMAGED, kind=DataError, hint=_ANEW)
    try:
        body: dict[str, Any] = json.loads(content)
        if body.pop("digest") != _digest(body):
            raise ValueError("its digest does not fit its content")
        if body["version"] != _VERSION:
            raise ValueError(f"its version is {str(body['version'])[:20]}, this program writes {_VERSION}")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else "it is no journal"
        raise DataError(_DAMAGED, where=path, why=why, hint=_ANEW) from error
    return body
