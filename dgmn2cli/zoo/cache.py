"""The cache of downloaded files: where it is, which content belongs to which entry, and its hashes.

Layout of the folder: `files/SHA256.pth` holds content under its own hash, `index/KEY@ORIGIN.json` says which content
was verified as which entry, `parts/` holds downloads under way. Nothing here is trusted because it is here: whoever
loads a file hashes it again and compares. What cannot be read or written is a `ResourceError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints, TypeAdapter

from dgmn2cli.errors import ConfigError, Dgmn2Error, IntegrityError, ResourceError
from dgmn2cli.files import atomic_write, hash_file, read_bounded, to_json
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.zoo.manifest import AnyEntry, Zoo, load_zoo

RECORD_LIMIT = 100_000  # bytes; a record has about 500
Pin = Literal["pinned", "recorded", "unknown"]


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache as the index knows it; its content is not yet checked."""

    path: Path
    sha256: str  # the hash it must have
    size: int  # its bytes on disk now
    pin: Literal["pinned", "recorded"]  # the manifest states the hash, or it was noted after a verified download
    source: str  # where it came from, in words; empty if only the manifest is known


@dataclass(frozen=True)
class Record:
    """What was once verified: the content `sha256` is the entry `key`.

    It holds for entries that have the source it came from, and for the very entry that a file of the user's was adopted
    for; another manifest's entry of the same key, or one that states another hash or none, has nothing from it.
    """

    key: str
    sources: tuple[str, ...]  # the entry's file name and sources at that time
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    size: int
    source: str  # the address or file it came from
    time: str  # UTC, ISO 8601
    stated: str | None = None  # the hash its manifest stated; None if the content was verified by structure

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


def find_cache(explicit: str | Path | None = None) -> Path | None:
    """As `cache_dir`, to look into; None for a user without a home, who has nothing cached."""
    try:
        return cache_dir(explicit)
    except ResourceError:
        return None


def checks_dir(explicit: str | Path | None = None) -> Path | None:
    """Where checks of data sets are remembered, in the cache; None for a user without a home."""
    folder = find_cache(explicit)
    return folder / "checks" if folder else None


def offline_wanted() -> bool:
    """Whether the environment switches the network off (`DGMN2_OFFLINE`)."""
    return os.environ.get("DGMN2_OFFLINE", "").strip().lower() in ("1", "t", "true", "y", "yes", "on")


def _user_cache() -> Path:
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if Path(configured).is_absolute():  # the XDG specification says to ignore a relative one
        return Path(configured)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # pathlib raises for a user without a home
    if os.environ.get("HOME") == "" or not home.is_absolute():  # an empty HOME would mean the root folder
        hint = "Name one with --cache or DGMN2_CACHE."
        raise ResourceError("no cache folder", why="the user has no home folder", hint=hint)
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def file_path(cache: Path, sha256: str) -> Path:
    """Where content with this hash is kept."""
    return cache / "files" / f"{sha256}.pth"


def expected_sha256(entry: AnyEntry, cache: Path) -> str | None:
    """The hash the entry's file must have: the manifest's, else the recorded one, else None."""
    record = find_record(entry, cache)
    return entry.sha256 or (record.sha256 if record else None)


def pin_state(entry: AnyEntry, cache: Path | None) -> Pin:
    """Whether the entry's hash is in the manifest, was recorded here, or is not known."""
    if entry.sha256:
        return "pinned"
    return "recorded" if find_record(entry, cache) else "unknown"


def locate(entry: AnyEntry, cache: Path | None) -> CachedFile | None:
    """The entry's file if there is a cache and it holds it; its content is not hashed here.

    Raises:
        ResourceError: the cache may not be read.
    """
    record = find_record(entry, cache)
    sha256 = entry.sha256 or (record.sha256 if record else None)
    if sha256 is None or cache is None:
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
    """Notes that content `sha256` was verified as `entry`; the note is durable when this returns."""
    listed = source in [place.address for place in entry.sources]
    owner = "\n".join(("source", source) if listed else ("adopted", *_origins(entry))) + f"\n{entry.sha256}"
    path = cache / "index" / f"{entry.key}@{hashlib.sha256(owner.encode()).hexdigest()[:12]}.json"
    old, now = _read_record(path), datetime.now(UTC).isoformat(timespec="microseconds")
    first = old.time if old and old.sha256 == sha256 else now
    note = Record(entry.key, _origins(entry), sha256, size, source, first, entry.sha256)
    atomic_write(path, to_json(asdict(note)) + "\n")
    return note


def record_path(entry: AnyEntry, cache: Path) -> Path | None:
    """The file of the record in force for `entry`."""
    records = _records(entry, cache)
    return records[0][1] if records else None


def find_record(entry: AnyEntry, cache: Path | None) -> Record | None:
    """The oldest record of `entry`: what was verified first is what later content is compared with."""
    records = _records(entry, cache)
    return records[0][2] if records else None


def _records(entry: AnyEntry, cache: Path | None) -> list[tuple[str, Path, Record]]:
    """The readable records of `entry`, oldest first. A damaged record counts as none: it is only a note."""
    paths = (cache / "index").glob(f"{entry.key}@*.json") if cache else ()
    notes = [(path, _read_record(path)) for path in paths]
    return sorted((note.time, path, note) for path, note in notes if note and note.holds_for(entry))


def _read_record(path: Path) -> Record | None:
    try:
        return TypeAdapter(Record).validate_json(read_bounded(path, RECORD_LIMIT))
    except (Dgmn2Error, ValueError):  # pydantic's error is a ValueError
        return None


def _origins(entry: AnyEntry) -> tuple[str, ...]:
    """What tells the entry from another manifest's of the same key: which network its file holds, and its sources."""
    return (entry.file_name, *(f"{source.type}:{source.location}" for source in entry.sources))


@dataclass(frozen=True)
class FetchedFile:
    """An entry's file in the cache, its hash just computed."""

    key: str
    path: Path
    sha256: str
    size: int  # bytes
    source: str  # where it came from, in words
    pin: Literal["pinned", "recorded", "new"]  # its hash is the manifest's, the one noted earlier, or noted now
    cached: bool  # it was there already
    seconds: float


def from_cache(entry: AnyEntry, cache: Path, observer: Observer = Silent()) -> FetchedFile | None:
    """The entry's file if the cache holds it and its content has the hash it must have; None otherwise.

    Raises:
        ResourceError: it may not be read.
    """
    began, found = time.monotonic(), locate(entry, cache)
    if found is None:
        return None
    if not _is_whole(entry, found, observer):
        observer.note(f"The cached file of {entry.key} is damaged: {found.path}")
        return None
    seconds = time.monotonic() - began
    return FetchedFile(entry.key, found.path, found.sha256, found.size, found.source, found.pin, True, seconds)


def _is_whole(entry: AnyEntry, found: CachedFile, observer: Observer) -> bool:
    observer.begin(entry.key, found.size, unit="bytes")
    return hash_file(found.path, observer.advance) == found.sha256


@dataclass(frozen=True)
class FileCheck:
    """What hashing an entry's file again showed."""

    key: str
    state: Literal["good", "damaged", "not on disk"]
    pin: Pin
    path: Path | None  # None if it is not there
    size: int | None
    sha256: str | None  # the hash it must have, None if not known


def verify_cache(entries: Sequence[AnyEntry], cache: Path, observer: Observer = Silent()) -> list[FileCheck]:
    """Hashes every entry's file again."""
    return [_verify(entry, cache, observer) for entry in entries]


def _verify(entry: AnyEntry, cache: Path, observer: Observer) -> FileCheck:
    found = locate(entry, cache)
    if found is None:
        sha256 = expected_sha256(entry, cache)
        return FileCheck(entry.key, "not on disk", pin_state(entry, cache), None, None, sha256)
    state: Literal["good", "damaged"] = "good" if _is_whole(entry, found, observer) else "damaged"
    return FileCheck(entry.key, state, found.pin, found.path, found.size, found.sha256)


def pin(
    zoo: Zoo,
    entries: Sequence[AnyEntry],
    cache: Path,
    out: Path,
    *,
    overwrite: bool = False,
    observer: Observer = Silent(),
) -> list[str]:
    """Writes a copy of the manifest that states the recorded hashes and sizes of `entries`, of all if that is empty.

    Returns:
        The keys that are pinned now and were not before.
    """
    if out.exists() and not overwrite:
        raise ConfigError("the manifest is not written", where=out, why="it exists", hint="Add --overwrite.")
    facts = {}
    for entry in [entry for entry in entries or (*zoo.segmentors, *zoo.backbones) if entry.sha256 is None]:
        if record := find_record(entry, cache):
            if _verify(entry, cache, observer).state == "damaged":
                hint = f"Get it again with `dgmn2 download {entry.key}`."
                raise IntegrityError("the hash is not pinned", where=entry.key, why="the file is damaged", hint=hint)
            facts[entry.key] = {"sha256": record.sha256, "size": record.size}
        elif entries:
            hint = f"Run `dgmn2 download {entry.key}` first."
            raise ConfigError("no hash is recorded", where=entry.key, hint=hint)
    if not facts and not entries:
        why, hint = "no hash is recorded there", "Download a model first."
        raise ConfigError("nothing to pin", where=cache, why=why, hint=hint)
    document = json.loads(zoo.path.read_text(encoding="utf-8"))
    for item in (*document["segmentors"], *document["imagenet_backbones"]):
        item.update(facts.get(item["key"], {}))
        _anchor(item["sources"], zoo.path.parent)
    atomic_write(out, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    load_zoo(out)
    return list(facts)


def _anchor(sources: list[dict[str, Any]], folder: Path) -> None:
    """Makes relative paths of `file` sources absolute: the copy may lie elsewhere."""
    for source in sources:
        if source["type"] == "file":
            source["path"] = os.path.join(folder.absolute(), source["path"])
