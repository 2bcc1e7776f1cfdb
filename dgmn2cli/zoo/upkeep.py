"""Looking after the cache: hashing again what is there, and pinning recorded hashes in a user's manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dgmn2cli.errors import ConfigError, IntegrityError
from dgmn2cli.files import atomic_write, hash_file
from dgmn2cli.observer import Observer, Silent
from dgmn2cli.zoo.cache import Pin, find_record, locate, pin_state
from dgmn2cli.zoo.manifest import AnyEntry, Zoo
from dgmn2cli.zoo.parse import load_zoo


@dataclass(frozen=True)
class FileCheck:
    """What hashing an entry's file again showed.

    Attributes:
        key: the entry.
        state: `good`, `damaged` or `not on disk`.
        pin: whether its hash is in the manifest, was recorded, or is not known.
        path: the file, None if it is not there.
        size: its bytes.
        sha256: the hash it must have, None if not known.
    """

    key: str
    state: Literal["good", "damaged", "not on disk"]
    pin: Pin
    path: Path | None
    size: int | None
    sha256: str | None


def verify_cache(entries: Sequence[AnyEntry], cache: Path, observer: Observer | None = None) -> list[FileCheck]:
    """Hashes every entry's file again.

    Raises:
        ResourceError: a file may not be read.
    """
    return [_verify(entry, cache, observer or Silent()) for entry in entries]


def _verify(entry: AnyEntry, cache: Path, observer: Observer) -> FileCheck:
    found, record = locate(entry, cache), find_record(entry, cache)
    if found is None:
        sha256 = entry.sha256 or (record.sha256 if record else None)
        return FileCheck(entry.key, "not on disk", pin_state(entry, cache), None, None, sha256)
    observer.begin(entry.key, found.size, unit="bytes")
    good = hash_file(found.path, observer.advance) == found.sha256
    return FileCheck(entry.key, "good" if good else "damaged", found.pin, found.path, found.size, found.sha256)


def pin(
    zoo: Zoo,
    entries: Sequence[AnyEntry],
    cache: Path,
    out: Path,
    *,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> list[str]:
    """Writes a copy of the manifest in which the recorded hashes and sizes are stated.

    Args:
        zoo: the manifest in force.
        entries: whose hashes; all that are recorded if empty.
        cache: the cache folder.
        out: the manifest to write.
        overwrite: replace `out` if it exists.
        observer: told the bytes hashed.

    Returns:
        The keys that are pinned now and were not before.

    Raises:
        ConfigError: `out` exists, or nothing is recorded (of an entry named).
        IntegrityError: a file on disk no longer has its recorded hash.
    """
    if out.exists() and not overwrite:
        raise ConfigError("the manifest is not written", where=out, why="it exists", hint="Add --overwrite.")
    facts = {}
    for entry in [entry for entry in entries or (*zoo.segmentors, *zoo.backbones) if entry.sha256 is None]:
        if record := find_record(entry, cache):
            if _verify(entry, cache, observer or Silent()).state == "damaged":
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
