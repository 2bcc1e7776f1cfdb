"""Owns reading a zoo manifest: JSON text to typed records, every fault named by its place in the file."""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dgmn2cli import resources
from dgmn2cli.errors import ConfigError, ResourceError
from dgmn2cli.zoo.manifest import BackboneEntry, Source, Zoo, ZooEntry, shown

WAY_OUT = "Correct it, or leave out --zoo."
MANIFEST_LIMIT = 5_000_000  # bytes; the published manifest has 12 thousand
FORMAT_VERSION = 1
KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
SHA256 = re.compile(r"[0-9a-f]{64}")
DRIVE_ID = re.compile(r"[A-Za-z0-9_-]{10,200}")


def load_zoo(path: str | Path | None = None) -> Zoo:
    """The manifest at `path`, or the one that came with the package.

    Raises:
        ConfigError: unreadable or wrong; every fault is named by its place in the file.
        ResourceError: the file may not be read, or the installation lacks it.
    """
    return read_zoo(Path(path)) if path is not None else _published()


@lru_cache(maxsize=1)
def _published() -> Zoo:
    """The package's own manifest, read once per process."""
    return read_zoo(resources.zoo_path())


def read_zoo(path: Path) -> Zoo:
    """The manifest at `path`.

    Raises:
        ConfigError: not a regular file, too large, not UTF-8, not JSON, or with wrong content (all faults at once).
        ResourceError: the file may not be read.
    """
    faults: list[str] = []
    document = _parse_json(_read_text(path), path)
    zoo = _read_document(_Table(document, "", faults), path)
    if faults:
        why = faults[0] if len(faults) == 1 else f"{len(faults)} faults, listed above"
        raise ConfigError(
            "the zoo manifest is not valid",
            where=path,
            why=why,
            hint=WAY_OUT,
            faults=faults if len(faults) > 1 else (),
        )
    return zoo


def loopback(host: str) -> bool:
    """Whether `host` is this machine, so that plain http to it crosses no network."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def url_fault(url: str) -> str:
    """What is wrong with `url` as a download source; empty if nothing is."""
    if not url.isprintable() or " " in url or len(url) > 2000:
        return "is no URL"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("https", "http"):
        return f"has the scheme '{shown(parts.scheme)}', wanted https"
    if not host:
        return "names no host"
    if parts.scheme == "http" and not loopback(host):
        return "is plain http, which anyone on the way can change; wanted https"
    if parts.username or parts.password:
        return "holds a user name or password, which would appear in reports"
    return ""


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys it was given twice."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.repeated = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]  # set.add returns None


class _Table:
    """One JSON object under reading: typed access by key, faults noted with their path, unknown keys noticed."""

    def __init__(self, value: Any, where: str, faults: list[str]) -> None:
        self.where, self.faults, self._known = where, faults, set[str]()
        self._values: dict[str, Any] = {}
        if isinstance(value, dict):
            self._values = value
            for key in getattr(value, "repeated", ()):
                self.fault(key, "is given twice")
        else:
            self.faults.append(f"{where or 'the document'}: wanted an object, found {_seen(value)}")
        self.is_object = isinstance(value, dict)

    def path(self, key: str) -> str:
        return f"{self.where}.{shown(key)}" if self.where else shown(key)

    def fault(self, key: str, message: str) -> None:
        self.faults.append(f"{self.path(key)}: {message}")

    def take(self, key: str, wanted: str, accept: Callable[[Any], bool], default: Any, nullable: bool = False) -> Any:
        """The value of `key` if `accept` holds for it; otherwise `default`, and a fault."""
        self._known.add(key)
        if key not in self._values:
            if self.is_object:
                self.fault(key, f"is missing; wanted {wanted}")
            return default
        value = self._values[key]
        if nullable and value is None:
            return None
        if not accept(value):
            self.fault(key, f"is {_seen(value)}; wanted {wanted}{' or null' if nullable else ''}")
            return default
        return value

    def text(self, key: str, pattern: re.Pattern[str] | None = None, wanted: str = "", nullable: bool = False) -> Any:
        """A string of 1 to 300 printable characters that matches `pattern` in full."""

        def accept(value: Any) -> bool:
            if not isinstance(value, str) or not 0 < len(value) <= 300 or not value.isprintable():
                return False
            return pattern is None or pattern.fullmatch(value) is not None

        return self.take(key, wanted or "a text of 1 to 300 characters", accept, "", nullable)

    def integer(self, key: str, low: int, high: int, nullable: bool = False) -> Any:
        """A whole number, `low <= value <= high`."""

        def accept(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

        return self.take(key, f"a whole number from {low} to {high}", accept, low, nullable)

    def percent(self, key: str) -> float | None:
        """A finite number from 0 to 100, or null."""

        def accept(value: Any) -> bool:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return number and math.isfinite(value) and 0 <= value <= 100

        value = self.take(key, "a number from 0 to 100", accept, None, nullable=True)
        return None if value is None else float(value)

    def tables(self, key: str, least: int, most: int) -> list[_Table]:
        """A list of objects, each as a table of its own."""

        def accept(value: Any) -> bool:
            return isinstance(value, list) and least <= len(value) <= most

        items = self.take(key, f"a list of {least} to {most} objects", accept, [])
        return [_Table(item, f"{self.path(key)}[{i}]", self.faults) for i, item in enumerate(items)]

    def done(self) -> None:
        """Notes every key that nothing asked for."""
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(str(key)[:80], sorted(self._known), n=1)
                self.fault(key, f"is not a known key{f'; did you mean {near[0]}?' if near else ''}")


def _read_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _unusable(path, "it is not a regular file")
        with path.open("rb") as file:
            data = file.read(MANIFEST_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _unusable(path, "there is no such file") from error
    except PermissionError as error:
        raise ResourceError("cannot read the zoo manifest", where=path, why="permission denied") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unusable(path, _reason(error)) from error
    if len(data) > MANIFEST_LIMIT:
        why = f"it is larger than {MANIFEST_LIMIT // 1_000_000} MB"
        raise ConfigError("cannot use the zoo manifest", where=path, why=why, hint="Is it a manifest at all?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        why = f"it is not UTF-8 text (byte {error.start})"
        raise _unusable(path, why) from error


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError("cannot use the zoo manifest", where=path, why=why, hint=WAY_OUT)


def _reason(error: Exception) -> str:
    return os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except RecursionError as error:
        raise _unusable(path, "it is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, and an integer of thousands of digits
        why = f"it is not JSON: {error}"
        raise _unusable(path, why) from error


def _read_document(table: _Table, path: Path) -> Zoo:
    table.integer("version", FORMAT_VERSION, FORMAT_VERSION)
    default = table.text("default", KEY, "the key of a segmentor")
    segmentors = tuple(_read_segmentor(item, path.parent) for item in table.tables("segmentors", 1, 1000))
    backbones = tuple(_read_backbone(item, path.parent) for item in table.tables("imagenet_backbones", 0, 1000))
    table.done()
    zoo = Zoo(path=path, default=default, segmentors=segmentors, backbones=backbones)
    if table.is_object:
        _check_names(zoo, table)
    return zoo


def _check_names(zoo: Zoo, table: _Table) -> None:
    """Names are unique, and whatever refers to another entry finds it."""
    taken: dict[str, str] = {}
    named = [(f"segmentors[{i}].key", e.key) for i, e in enumerate(zoo.segmentors)]
    named += [(f"segmentors[{i}].config", e.config.lower()) for i, e in enumerate(zoo.segmentors)]
    named += [(f"imagenet_backbones[{i}].key", e.key) for i, e in enumerate(zoo.backbones)]
    for place, name in named:
        if name and taken.setdefault(name, place) != place:
            table.fault(place, f"'{name}' is already used by {taken[name]}")
    if zoo.default and zoo.default not in {entry.key for entry in zoo.segmentors}:
        table.fault("default", f"'{zoo.default}' is no segmentor's key")
    backbones = {entry.key for entry in zoo.backbones}
    for i, entry in enumerate(zoo.segmentors):
        if entry.backbone and entry.backbone not in backbones:
            table.fault(f"segmentors[{i}].backbone", f"'{entry.backbone}' is no backbone's key")


def _read_segmentor(table: _Table, folder: Path) -> ZooEntry:
    entry = ZooEntry(
        key=table.text("key", KEY, "1 to 80 of a-z 0-9 . _ -, a letter or digit first"),
        config=table.text("config", FILE_NAME, "a configuration's name, without .py"),
        head=table.text("head"),
        backbone=table.text("backbone", KEY, "the key of a backbone"),
        dataset=table.text("dataset"),
        iters=table.integer("iters", 1, 10**9),
        protocol=table.text("protocol", re.compile("paper|native"), "'paper' or 'native'"),
        miou=table.percent("miou"),
        miou_ms_flip=table.percent("miou_ms_flip"),
        params=table.integer("params", 1, 10**12),
        macs_769=table.integer("macs_769", 1, 10**18, nullable=True),
        **_read_file_facts(table, folder),
    )
    table.done()
    return entry


def _read_backbone(table: _Table, folder: Path) -> BackboneEntry:
    entry = BackboneEntry(
        key=table.text("key", KEY, "1 to 80 of a-z 0-9 . _ -, a letter or digit first"),
        file_name=table.text("file_name", FILE_NAME, "a plain file name"),
        dataset=table.text("dataset"),
        top1=table.percent("top1"),
        params=table.integer("params", 1, 10**12),
        macs_224=table.integer("macs_224", 1, 10**18, nullable=True),
        **_read_file_facts(table, folder),
    )
    table.done()
    return entry


def _read_file_facts(table: _Table, folder: Path) -> dict[str, Any]:
    """What both kinds of entries say about their file."""
    return {
        "licence": table.text("licence"),
        "paper": table.text("paper"),
        "sources": tuple(_read_source(item, folder) for item in table.tables("sources", 1, 20)),
        "size": table.integer("size", 1, 10**12, nullable=True),
        "sha256": table.text("sha256", SHA256, "64 lower-case hexadecimal digits", nullable=True),
    }


def _read_source(table: _Table, folder: Path) -> Source:
    kind = table.text("type", re.compile("gdrive|https|file"), "'gdrive', 'https' or 'file'")
    location = ""
    if kind == "gdrive":
        location = table.text("id", DRIVE_ID, "a Google Drive file id")
    elif kind == "https":
        location = table.take("url", "a URL", lambda value: isinstance(value, str), "")
        if location and (fault := url_fault(location)):
            table.fault("url", fault)
    elif kind == "file":
        location = table.text("path", wanted="a path, absolute or from the manifest's folder")
        location = str(folder.absolute() / location) if location else ""
    if kind:
        table.done()
    return Source(type=kind, location=location)


def _seen(value: Any) -> str:
    """A wrong value as a message shows it: its kind, and itself if short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{shown(value)}'" if value else "an empty text"
    if isinstance(value, (int, float)):
        return shown(str(value)) if not isinstance(value, int) or abs(value) < 10**60 else "an enormous number"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "an object"
