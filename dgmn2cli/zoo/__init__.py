"""The model zoo: entries by name, and the cache of their files. Needs no torch."""

from __future__ import annotations

from dgmn2cli.zoo.cache import CachedFile, cache_dir, find_cache, locate, offline_wanted, pin_state
from dgmn2cli.zoo.manifest import AnyEntry, BackboneEntry, Source, Zoo, ZooEntry, load_zoo

__all__ = [
    "AnyEntry",
    "BackboneEntry",
    "CachedFile",
    "Source",
    "Zoo",
    "ZooEntry",
    "backbone",
    "cache_dir",
    "entries",
    "find",
    "find_cache",
    "load_zoo",
    "locate",
    "offline_wanted",
    "pin_state",
    "short_name",
]


def find(name: str) -> ZooEntry:
    """The published segmentor called `name` (key or configuration name).

    Raises:
        ConfigError: no such model.
    """
    return load_zoo().find(name)


def backbone(name: str) -> BackboneEntry:
    """The published ImageNet backbone called `name` (`tiny`, `dgmn2_tiny`).

    Raises:
        ConfigError: no such backbone.
    """
    return load_zoo().backbone(name)


def entries(pattern: str = "") -> tuple[ZooEntry, ...]:
    """The published segmentors that match `pattern` (glob or part of a name); all 16 without one."""
    return load_zoo().entries(pattern)


def short_name(name: str) -> str:
    """The key of the published model whose configuration is called `name`; `name` itself where there is none."""
    return next((entry.key for entry in load_zoo().segmentors if entry.config == name), name)
