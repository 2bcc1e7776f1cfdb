"""Reading a zoo manifest: JSON to typed records, every fault named by its place in the file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dgmn2cli import resources
from dgmn2cli.errors import ConfigError
from dgmn2cli.files import read_text
from dgmn2cli.validation import Fault, check, parse_json, raise_faults, schema_of, show
from dgmn2cli.zoo.manifest import DRIVE_ID as DRIVE_ID
from dgmn2cli.zoo.manifest import Manifest, Zoo
from dgmn2cli.zoo.manifest import loopback as loopback
from dgmn2cli.zoo.manifest import url_fault as url_fault

WAY_OUT = "Correct it, or leave out --zoo."
MANIFEST_LIMIT = 5_000_000  # bytes; the published manifest has 12 thousand


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


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of a manifest."""
    return schema_of(_adapter())


def read_zoo(path: Path) -> Zoo:
    """The manifest at `path`."""
    what = "cannot use the zoo manifest"
    text = read_text(path, MANIFEST_LIMIT, what, kind=ConfigError, hint=WAY_OUT)
    try:
        document, faults = parse_json(text)
    except ValueError as error:
        raise ConfigError(what, where=path, why=str(error), hint=WAY_OUT) from error
    manifest = check(_adapter(), document, context=path.parent)
    if isinstance(manifest, list):
        faults += manifest
    said = {fault.key for fault in faults}
    faults += [fault for fault in _name_faults(document) if fault.key not in said]
    if faults or isinstance(manifest, list):
        raise_faults("the zoo manifest is not valid", [str(fault) for fault in faults], path, WAY_OUT)
    return Zoo(path, manifest.default, manifest.segmentors, manifest.imagenet_backbones)


def _name_faults(document: Any) -> list[Fault]:
    """Names that are given twice, and references to entries that do not exist."""
    segmentors, backbones = _texts(document, "segmentors"), _texts(document, "imagenet_backbones")
    keys = {name for place, name in segmentors.items() if place.endswith(".key")}
    known = {name for place, name in backbones.items() if place.endswith(".key")}
    faults, taken = [], dict[str, str]()
    for place, name in (*segmentors.items(), *backbones.items()):
        if place.endswith((".key", ".config")) and taken.setdefault(name.lower(), place) != place:
            faults.append(Fault(place, f"{show(name)} is already used by {taken[name.lower()]}"))
        if place.endswith(".backbone") and name not in known:
            faults.append(Fault(place, f"{show(name)} is no backbone's key"))
    default = document.get("default") if isinstance(document, dict) else None
    if isinstance(default, str) and default not in keys:
        faults.append(Fault("default", f"{show(default)} is no segmentor's key"))
    return faults


def _texts(document: Any, group: str) -> dict[str, str]:
    """The names in a group of entries, by their places."""
    entries = document.get(group) if isinstance(document, dict) else None
    return {
        f"{group}[{index}].{name}": entry[name]
        for index, entry in enumerate(entries if isinstance(entries, list) else ())
        for name in ("key", "config", "backbone")
        if isinstance(entry, dict) and isinstance(entry.get(name), str)
    }
