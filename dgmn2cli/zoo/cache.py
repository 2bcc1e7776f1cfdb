"""Owns the cache of downloaded files: where it is, which content belongs to which entry, and its hashes.

Layout of the folder: `files/SHA256.pth` holds content under its own hash, `index/KEY@ORIGIN.json` says which content
was verified as which entry, `parts/` holds downloads under way. Nothing here is trusted because it is here: whoever
loads a file hashes it again and compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from dgmn2cli.errors import IntegrityError, ResourceError
from dgmn2cli.files import atomic_write, open_regular, to_json
from dgmn2cli.zoo.manifest import AnyEntry, Source

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

    Attributes:
        key: the entry's key.
        sources: the entry's sources at that time, so that another manifest's entry of the same key is told apart.
        sha256: hash of the verified content.
        size: its bytes.
        source: the source it came from, in words.
        time: when, UTC, ISO 8601.
    """

    key: str
    sources: tuple[str, ...]
    sha256: str
    size: int
    source: str
    time: str


def cache_dir(explicit: str | Path | None = None) -> Path:
    """The cache folder: `explicit`, else `DGMN2_CACHE`, else `dgmn2` in the platform's user cache. Not created.

    Raises:
        ResourceError: no folder is named and the user has no home.
    """
    named = explicit if explicit is not None else os.environ.get("DGMN2_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return _user_cache() / "dgmn2"


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
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        return None
    source = record.source if record and record.sha256 == sha256 else ""
    return CachedFile(path, sha256, status.st_size, "pinned" if entry.sha256 else "recorded", source)


def record(entry: AnyEntry, cache: Path, *, sha256: str, size: int, source: str) -> Record:
    """Notes that content `sha256` was verified as `entry`; the note is durable when this returns.

    Raises:
        ResourceError: the cache cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    note = Record(entry.key, _origins(entry.sources), sha256, size, source, now)
    atomic_write(record_path(entry, cache), to_json(asdict(note)) + "\n")
    return note


def record_path(entry: AnyEntry, cache: Path) -> Path:
    """The record's file: the one in force for `entry`, else the one a new record would get."""
    known = [path for path, _ in _records(entry, cache)]
    if known:
        return known[-1]
    origin = hashlib.sha256("\n".join(_origins(entry.sources)).encode()).hexdigest()[:12]
    return cache / "index" / f"{entry.key}@{origin}.json"


def find_record(entry: AnyEntry, cache: Path) -> Record | None:
    """The newest record of `entry`: same key and at least one source in common."""
    records = _records(entry, cache)
    return records[-1][1] if records else None


def _records(entry: AnyEntry, cache: Path) -> list[tuple[Path, Record]]:
    """The readable records of `entry`, oldest first. A damaged record counts as none: it is only a note."""
    found = []
    origins = set(_origins(entry.sources))
    for path in sorted((cache / "index").glob(f"{entry.key}@*.json")):
        note = _read_record(path)
        if note and note.key == entry.key and origins & set(note.sources):
            found.append((path, note))
    return sorted(found, key=lambda pair: (pair[1].time, pair[0].name))


def _read_record(path: Path) -> Record | None:
    try:
        with open_regular(path) as file:
            values = json.loads(file.read(RECORD_LIMIT).decode())
        note = Record(
            key=str(values["key"]),
            sources=tuple(map(str, values["sources"])),
            sha256=str(values["sha256"]),
            size=int(values["size"]),
            source=str(values["source"]),
            time=str(values["time"]),
        )
    except (IntegrityError, ResourceError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return note if len(note.sha256) == 64 and set(note.sha256) <= set("0123456789abcdef") else None


def _origins(sources: tuple[Source, ...]) -> tuple[str, ...]:
    return tuple(f"{source.type}:{source.location}" for source in sources)


def _unreadable(path: Path, error: OSError) -> ResourceError:
    why = os.strerror(error.errno).lower() if error.errno else str(error)
    hint = "Check its permissions." if isinstance(error, PermissionError) else "Check the path."
    return ResourceError("cannot read the file", where=path, why=why, hint=hint)
