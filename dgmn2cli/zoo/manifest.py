"""Owns what a zoo is: its entries as typed records, and finding one by the name a user types."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dgmn2cli.errors import ConfigError, printable

NAME_LIMIT = 200
SourceType = Literal["gdrive", "https", "file"]


@dataclass(frozen=True)
class Source:
    """One place a file can be had from.

    Attributes:
        type: `gdrive` (Google Drive), `https` (also plain http, for loopback hosts only) or `file`.
        location: the Drive id, the URL, or the absolute path.
    """

    type: SourceType
    location: str

    @property
    def address(self) -> str:
        """What a person can open: a URL or a path."""
        return f"https://drive.google.com/file/d/{self.location}/view" if self.type == "gdrive" else self.location


@dataclass(frozen=True)
class ZooEntry:
    """One published segmentor: where its weights are, what they score, what they cost.

    Attributes:
        key: the short name, `head-size`.
        config: the published configuration's name, without `.py`.
        head: the head as published, e.g. "SETR-PUP".
        backbone: the key of the ImageNet backbone its training starts from, e.g. "dgmn2_tiny".
        dataset: what the scores were measured on.
        iters: published training iterations.
        protocol: the inference protocol of the scores.
        miou: published mean IoU in percent, single scale; None if none is published.
        miou_ms_flip: the same with six scales and flips.
        params: number of parameters.
        macs_769: multiply-accumulates for one 769x769 window; None if not counted.
        licence: the weights' licence (SPDX).
        paper: URL of the paper.
        sources: places to get the file from, in the order they are tried.
        size: bytes of the file; None if not published.
        sha256: hash of the file, 64 lower-case hex digits; None if not published.
    """

    key: str
    config: str
    head: str
    backbone: str
    dataset: str
    iters: int
    protocol: str
    miou: float | None
    miou_ms_flip: float | None
    params: int
    macs_769: int | None
    licence: str
    paper: str
    sources: tuple[Source, ...]
    size: int | None
    sha256: str | None

    @property
    def file_name(self) -> str:
        """The name a copy of the file gets in a folder of the user's."""
        return f"{self.config}.pth"


@dataclass(frozen=True)
class BackboneEntry:
    """One published ImageNet classification checkpoint, the start of a training.

    Attributes:
        key: `dgmn2_SIZE`.
        file_name: the published file's name.
        dataset: what it was trained on.
        top1: published top-1 accuracy in percent; None if none is published.
        params: number of parameters, classification head included.
        macs_224: multiply-accumulates for one 224x224 image, as published (rounded); None if not counted.
        licence: the weights' licence (SPDX).
        paper: URL of the paper.
        sources: places to get the file from, in the order they are tried.
        size: bytes of the file; None if not published.
        sha256: hash of the file, 64 lower-case hex digits; None if not published.
    """

    key: str
    file_name: str
    dataset: str
    top1: float | None
    params: int
    macs_224: int | None
    licence: str
    paper: str
    sources: tuple[Source, ...]
    size: int | None
    sha256: str | None


AnyEntry = ZooEntry | BackboneEntry


@dataclass(frozen=True)
class Zoo:
    """A whole manifest.

    Attributes:
        path: the file it was read from.
        default: key of the segmentor that is meant when none is named.
        segmentors: the segmentation models, in the manifest's order.
        backbones: the ImageNet backbones, in the manifest's order.
    """

    path: Path
    default: str
    segmentors: tuple[ZooEntry, ...]
    backbones: tuple[BackboneEntry, ...]

    def find(self, name: str) -> ZooEntry:
        """The segmentor called `name`: its key or its configuration's name (`.py` or not), any letter case.

        Raises:
            ConfigError: no such model; the nearest names are suggested.
        """
        wanted = _stem(name)
        for entry in self.segmentors:
            if wanted in (entry.key.lower(), entry.config.lower()):
                return entry
        names = [known for entry in self.segmentors for known in (entry.key, entry.config)]
        hint = _suggestion(wanted, names) or "`dgmn2 zoo list` shows all models."
        if any(wanted in _backbone_names(backbone) for backbone in self.backbones):
            hint = f"It is an ImageNet backbone; models with it: {_with_backbone(self, wanted)}."
        why = _reason(name) or _file_reason(name)
        raise ConfigError("no such model", where=shown(name), why=why, hint=hint)

    def backbone(self, name: str) -> BackboneEntry:
        """The ImageNet backbone called `name`: its key, its size alone (`tiny`) or its published name (`DGMN2-Tiny`).

        Raises:
            ConfigError: no such backbone; the known ones are named.
        """
        wanted = _stem(name)
        for entry in self.backbones:
            if wanted in _backbone_names(entry):
                return entry
        known = ", ".join(entry.key for entry in self.backbones)
        raise ConfigError("no such backbone", where=shown(name), why=_reason(name), hint=f"Known backbones: {known}.")

    def entry(self, name: str) -> AnyEntry:
        """The segmentor called `name`, else the backbone whose key that is.

        Raises:
            ConfigError: neither exists.
        """
        for backbone in self.backbones:
            if name.lower() in (backbone.key.lower(), backbone.file_name.lower()):
                return backbone
        return self.find(name)

    def entries(self, pattern: str = "") -> tuple[ZooEntry, ...]:
        """The segmentors that match `pattern`: a glob on key or configuration name, or else a part of
        key, configuration name, head or backbone, in any letter case. An empty pattern matches all.
        """
        wanted = pattern.lower()
        if any(character in wanted for character in "*?["):
            globbed = [(entry, (entry.key, entry.config)) for entry in self.segmentors]
            return tuple(e for e, names in globbed if any(fnmatch.fnmatchcase(n.lower(), wanted) for n in names))
        named = [(entry, (entry.key, entry.config, entry.head, entry.backbone)) for entry in self.segmentors]
        return tuple(e for e, names in named if any(wanted in n.lower() for n in names))


def shown(name: str) -> str:
    """A name of unknown origin, fit for a message: control characters escaped, 60 characters at most."""
    text = printable(name[:NAME_LIMIT])
    return text if len(text) <= 60 else f"{text[:57]}..."


def _stem(name: str) -> str:
    """`name` in lower case without a configuration file's ending; empty if it cannot be a model name."""
    if len(name) > NAME_LIMIT or not name.isprintable():
        return ""
    lowered = name.lower()
    return next((lowered.removesuffix(end) for end in (".py", ".toml") if lowered.endswith(end)), lowered)


def _reason(name: str) -> str:
    if not name:
        return "the name is empty"
    if len(name) > NAME_LIMIT:
        return f"the name has {len(name)} characters, {NAME_LIMIT} are allowed"
    if not name.isprintable():
        return "the name holds control characters"
    return ""


def _file_reason(name: str) -> str:
    """What to know of a name that was meant as a configuration file's."""
    return "it is neither a published name nor a file here" if name.endswith((".toml", ".py")) else ""


def _backbone_names(entry: BackboneEntry) -> tuple[str, ...]:
    key = entry.key.lower()
    return key, key.rsplit("_", 1)[-1], key.replace("_", "-"), entry.file_name.lower()


def _with_backbone(zoo: Zoo, name: str) -> str:
    key = zoo.backbone(name).key
    return ", ".join(entry.key for entry in zoo.segmentors if entry.backbone == key)


def _suggestion(wanted: str, names: list[str]) -> str:
    """The names that hold `wanted`, else those spelt nearly so, as a question; empty if there is none."""
    if not wanted:
        return ""
    near = [name for name in names if wanted in name.lower()][:4]
    near = near or difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    return f"Did you mean {', '.join(near)}?" if near else ""
