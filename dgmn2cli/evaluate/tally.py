"""Owns the running count of an evaluation, and the journal from which a killed one goes on to the identical matrix."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgmn2cli.errors import ConfigError, DataError, ResourceError
from dgmn2cli.files import atomic_write, to_plain

EVERY = 2.0  # seconds between two entries; what a kill can cost, beside the picture under way
SIZE_LIMIT = 64 << 20  # bytes of a journal; 255 classes and a million pictures stay below
_VERSION = 1


@dataclass(frozen=True)
class Journal:
    """A file that says how far an evaluation is.

    Attributes:
        path: the file; written whole or not at all, with a digest of its content.
        identity: all that the matrix depends on; a run goes on only from a journal with the same.
        every: seconds between two entries.
    """

    path: Path
    identity: dict[str, Any]
    every: float = EVERY


class Tally:
    """What is counted so far.

    Attributes:
        counts: (N, N + 1) int64 confusion counts, see `metrics.ConfusionMatrix`.
        done: places in the data set of the pictures in it.
    """

    def __init__(self, classes: int, journal: Journal | None = None, seconds: float = 0.0) -> None:
        self.counts = np.zeros((classes, classes + 1), np.int64)
        self.done: set[int] = set()
        self.journal, self._earlier = journal, seconds
        self._began = self._noted = time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent on what is counted, earlier runs included."""
        return self._earlier + time.monotonic() - self._began

    def add(self, index: int, counts: np.ndarray) -> None:
        """Adds the picture at `index`; notes it in the journal if the last entry is old enough.

        Raises:
            ValueError: it is in already.
            ResourceError: the journal cannot be written.
        """
        if index in self.done:
            raise ValueError(f"picture {index} is counted already")
        self.counts += counts
        self.done.add(index)
        if self.journal is not None and time.monotonic() - self._noted >= self.journal.every:
            self.note()

    def note(self) -> None:
        """Writes the journal, where there is one and something to write.

        Raises:
            ResourceError: it cannot be written.
        """
        if self.journal is None or not self.done:
            return
        body = {
            "version": _VERSION,
            "identity": to_plain(self.journal.identity),
            "done": sorted(self.done),
            "counts": self.counts.tolist(),
            "seconds": self.seconds,
        }
        atomic_write(self.journal.path, json.dumps({**body, "digest": _digest(body)}) + "\n")
        self._noted = time.monotonic()


def start_tally(classes: int, pictures: int, journal: Journal | None, *, resume: bool) -> Tally:
    """A tally for `pictures` pictures, from zero or from where the journal says.

    Args:
        journal: where to note progress; None: nowhere.
        resume: go on from the journal's content; from zero where there is none yet.

    Raises:
        ConfigError: the journal is of another run (the differences are shown), or there is one and `resume` is False.
        DataError: the journal is damaged.
    """
    if journal is None or not journal.path.exists():
        return Tally(classes, journal)
    body = _read(journal.path)
    if not resume:
        why = f"{len(body['done'])} of {pictures} pictures are counted"
        hint = "Go on with --resume, or delete it to start anew."
        raise ConfigError("there is the journal of an interrupted evaluation", where=journal.path, why=why, hint=hint)
    differences = identity_differences(body["identity"], to_plain(journal.identity))
    if differences:
        raise ConfigError(
            "cannot go on with another evaluation's journal",
            where=journal.path,
            why=f"{len(differences)} settings differ",
            faults=differences,
            hint="Use the same settings, or delete the journal to start anew.",
        )
    tally = Tally(classes, journal, float(body["seconds"]))
    counts, done = np.array(body["counts"], np.int64), set(body["done"])
    if counts.shape != tally.counts.shape or not done <= set(range(pictures)):
        raise _damaged(journal.path, "its counts do not fit the data set")
    tally.counts, tally.done = counts, done
    return tally


def identity_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each entry that is not the same."""
    keys = list(dict.fromkeys([*old, *new]))
    return [
        f"{key}: the journal has {json.dumps(old.get(key))}, this run {json.dumps(new.get(key))}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise _damaged(path, f"it is larger than {SIZE_LIMIT:,} bytes")
        body = json.loads(path.read_bytes())
    except OSError as error:
        why = error.strerror or str(error)
        raise ResourceError("cannot read the journal", where=path, why=why, hint="Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "it is no JSON document") from error
    if not isinstance(body, dict) or body.pop("digest", None) != _digest(body):
        raise _damaged(path, "its digest does not fit its content")
    if body.get("version") != _VERSION:
        raise _damaged(path, f"its version is {str(body.get('version'))[:20]}, this program writes {_VERSION}")
    return body


def _damaged(path: Path, why: str) -> DataError:
    hint = "Delete it to start the evaluation anew."
    return DataError("cannot use the journal of an interrupted evaluation", where=path, why=why, hint=hint)
