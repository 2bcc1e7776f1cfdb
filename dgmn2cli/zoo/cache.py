"""The cache of downloaded files: where it is, which content belongs to which entry, and its hashes.

Layout of the folder: `files/SHA256.pth` holds content under its own hash, `index/KEY@ORIGIN.json` says which content
was verified as which entry, `parts/` holds downloads under way. Nothing here is trusted because it is here: whoever
loads a file hashes it again and compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from dgmn2cli.errors import Dgmn2Error, ResourceError
from dgmn2cli.files import atomic_write, read_bounded, to_json
from dgmn2cli.zoo.manifest import AnyEntry

RECORD_LIMIT = 100_000  # bytes; a record has about 500
Pin = Literal["pinned", "recorded", "unknown"]


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache as the index knows it; its content is not yet checked.

    Attributes:
        path: where it is.
        sha256: the hash it must have.
        size: its bytes on disk now.
        pin: `pinned` if the manifest states the hash, `recorded` if it was noted after the first verified download.
        source: where it came from, in words; empty if only the manifest is known.
    """

    path: Path
    sha256: str
    size: int
    pin: Pin
    source: str


@dataclass(frozen=True)
class Record:
    """What was once verified: the content `sha256` is the entry `key`.

    It holds for entries that have the source it came from, and for the very entry that a file of the user's was adopted
    for; another manifest's entry of the same key, or one that states another hash or none, has nothing from it.

    Attributes:
        key: the entry's key.
        sources: the entry's sources at that time.
        stated: the hash its manifest stated, None if it stated none and the content was verified by structure.
        sha256: hash of the verified content.
        size: its bytes.
        source: the address or file it came from.
        time: when, UTC, ISO 8601.
    """

    key: str
    sources: tuple[str, ...]
    stated: str | None
    sha256: str
    size: int
    source: str
    time: str

    def holds_for(self, entry: AnyEntry) -> bool:
        """Whether this is a record of `entry`, whatever manifest it stands in."""
        came_from = any(self.source == source.address for source in entry.sources)
        same = self.key == entry.key and self.stated == entry.sha256
        return same and (came_from or self.sources == _origins(entry))


def cache_dir(explicit: str | Path | None = None) -> Path:
    """The cache folder: `explicit`, else `DGMN2_CACHE`, else `dgmn2` in the platform's user cache. Not created.

    Raises:
        ResourceError: no folder is named and the user has no home.
    """
    named = explicit if explicit is not None else os.environ.get("DGMN2_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return _user_cache() / "dgmn2"


def offline_wanted() -> bool:
    """Whether the environment switches the network off (`DGMN2_OFFLINE`)."""
    return os.environ.get("DGMN2_OFFLINE", "").strip().lower() in ("1", "t", "true", "y", "yes", "on")


def _user_cache() -> Path:
    """The platform's folder for caches."""
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):  # the XDG specification says to ignore a relative one
        return Path(configured)
    home = Path(os.path.expanduser("~"))
    if os.environ.get("HOME") == "" or not home.is_absolute():  # an empty HOME would mean the root folder
        hint = "Name one with --cache or DGMN2_CACHE."
        raise ResourceError("no cache folder", why="the user has no home folder", hint=hint)
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def file_path(cache: Path, sha256: str) -> Path:
    """Where content with this hash is kept."""
    return cache / "files" / f"{sha256}.pth"


def expected_sha256(entry: AnyEntry, cache: Path) -> str | None:
    """The hash the entry's file must have: the manifest's, else the recorded one, else None."""
    if entry.sha256:
        return entry.sha256
    record = find_record(entry, cache)
    return record.sha256 if record else None


def pin_state(entry: AnyEntry, cache: Path) -> Pin:
    """Whether the entry's hash is in the manifest, was recorded here, or is not known."""
    if entry.sha256:
        return "pinned"
    return "recorded" if find_record(entry, cache) else "unknown"


def locate(entry: AnyEntry, cache: Path) -> CachedFile | None:
    """The entry's file if the cache holds it; its content is not hashed here.

    Raises:
        ResourceError: the cache may not be read.
    """
    record = find_record(entry, cache)
    sha256 = entry.sha256 or (record.sha256 if record else None)
    if sha256 is None:
        return None
    path = file_path(cache, sha256)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ResourceError("cannot read the file", where=path, why=(error.strerror or str(error)).lower()) from error
    if not stat.S_ISREG(status.st_mode):
        return None
    source = record.source if record and record.sha256 == sha256 else ""
    return CachedFile(path, sha256, status.st_size, "pinned" if entry.sha256 else "recorded", source)


def record(entry: AnyEntry, cache: Path, *, sha256: str, size: int, source: str) -> Record:
    """Notes that content `sha256` was verified as `entry`; the note is durable when this returns.

    Raises:
        ResourceError: the cache cannot be written.
    """
    listed = source in [place.address for place in entry.sources]
    owner = "\n".join(("source", source) if listed else ("adopted", *_origins(entry))) + f"\n{entry.sha256}"
    path = cache / "index" / f"{entry.key}@{hashlib.sha256(owner.encode()).hexdigest()[:12]}.json"
    old, now = _read_record(path), datetime.now(UTC).isoformat(timespec="microseconds")
    first = old.time if old and old.sha256 == sha256 else now
    note = Record(entry.key, _origins(entry), entry.sha256, sha256, size, source, first)
    atomic_write(path, to_json(asdict(note)) + "\n")
    return note


def record_path(entry: AnyEntry, cache: Path) -> Path | None:
    """The file of the record in force for `entry`."""
    records = _records(entry, cache)
    return records[0][1] if records else None


def find_record(entry: AnyEntry, cache: Path) -> Record | None:
    """The oldest record of `entry`: what was verified first is what later content is compared with."""
    records = _records(entry, cache)
    return records[0][2] if records else None


def _records(entry: AnyEntry, cache: Path) -> list[tuple[str, Path, Record]]:
    """The readable records of `entry`, oldest first. A damaged record counts as none: it is only a note."""
    notes = [(path, _read_record(path)) for path in (cache / "index").glob(f"{entry.key}@*.json")]
    return sorted((note.time, path, note) for path, note in notes if note and note.holds_for(entry))


def _read_record(path: Path) -> Record | None:
    try:
        values = json.loads(read_bounded(path, RECORD_LIMIT))
        note = Record(
            key=str(values["key"]),
            sources=tuple(map(str, values["sources"])),
            stated=values.get("stated"),
            sha256=str(values["sha256"]),
            size=int(values["size"]),
            source=str(values["source"]),
            time=str(values["time"]),
        )
    except (Dgmn2Error, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return note if re.fullmatch("[0-9a-f]{64}", note.sha256) else None


def _origins(entry: AnyEntry) -> tuple[str, ...]:
    return tuple(f"{source.type}:{source.location}" for source in entry.sources)
