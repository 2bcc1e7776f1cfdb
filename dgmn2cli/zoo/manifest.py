"""What a zoo is: its manifest, declared once for reading, checking and the JSON schema; entries by the name typed."""

from __future__ import annotations

import difflib
import fnmatch
import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler, StrictFloat, StrictInt, TypeAdapter
from pydantic.dataclasses import dataclass as validated
from pydantic_core import CoreSchema, core_schema

from dgmn2cli import resources
from dgmn2cli.errors import ConfigError
from dgmn2cli.errors import shown as shown
from dgmn2cli.files import read_text
from dgmn2cli.validation import STRICT, Fault, Printable, check, parse_json, raise_faults, show

WAY_OUT = "Correct it, or leave out --zoo."
MANIFEST_LIMIT = 5_000_000  # bytes; the published manifest has 12 thousand
NAME_LIMIT = 200
BYTES_PER_PARAM = 15  # float32 weights and Adam's two moments, and a quarter more
OVERHEAD = 64 << 20  # bytes a file may have beyond its tensors
LAZY = ConfigDict(**STRICT, defer_build=True)  # built for the whole manifest at once, not for each class
DRIVE_ID = re.compile(r"[A-Za-z0-9_-]{10,200}")
PLAIN_HTTP = "is plain http, which anyone on the way can change; wanted https"
SourceType = Literal["gdrive", "https", "file"]


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
        return PLAIN_HTTP
    if parts.username or parts.password:
        return "holds a user name or password, which would appear in reports"
    return ""


def _url(text: str) -> str:
    if fault := url_fault(text):
        raise ValueError(f"which {fault}")
    return text


def _matching(pattern: str, wanted: str) -> Any:
    return Field(pattern=f"^{pattern}$", json_schema_extra={"$comment": wanted})


Text = Annotated[Printable, Field(min_length=1, max_length=300)]
Key = Annotated[Printable, _matching("[a-z0-9][a-z0-9._-]{0,79}", "1 to 80 of a-z 0-9 . _ -, a letter or digit first")]
FileName = Annotated[Printable, _matching("[A-Za-z0-9][A-Za-z0-9._-]{0,119}", "a plain file name")]
Sha256 = Annotated[Printable, _matching("[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
Percent = Annotated[StrictFloat, Field(ge=0, le=100)]
Count = Annotated[StrictInt, Field(ge=1, le=10**12)]
Operations = Annotated[StrictInt, Field(ge=1, le=10**18)]


@validated(frozen=True, config=LAZY)
class _DriveFile:
    type: Literal["gdrive"]
    id: Annotated[Printable, _matching(DRIVE_ID.pattern, "a Google Drive file id")]


@validated(frozen=True, config=LAZY)
class _WebFile:
    type: Literal["https"]
    url: Annotated[
        Printable,
        AfterValidator(_url),
        Field(json_schema_extra={"pattern": r"^(https://|http://(localhost|127\.[0-9.]+|\[::1\])[:/])"}),
    ]


@validated(frozen=True, config=LAZY)
class _LocalFile:
    type: Literal["file"]
    path: Text = Field(description="absolute, or from the manifest's folder")


@dataclass(frozen=True)
class Source:
    """One place a file can be had from."""

    type: SourceType  # `gdrive` (Google Drive), `https` (also plain http, for loopback hosts only) or `file`
    location: str  # the Drive id, the URL, or the absolute path

    @property
    def address(self) -> str:
        """What a person can open: a URL or a path."""
        return f"https://drive.google.com/file/d/{self.location}/view" if self.type == "gdrive" else self.location

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In a manifest a source is an object with `type` and an id, URL or path of its own name."""

        def read(value: Any, inner: Any, info: Any) -> Source:
            if isinstance(value, cls):
                return value
            said = inner(value)
            if said.type == "file":
                return cls("file", str((info.context or Path()).absolute() / said.path))
            return cls(said.type, said.id if said.type == "gdrive" else said.url)

        said: Any = Annotated[_DriveFile | _WebFile | _LocalFile, Field(discriminator="type")]
        return core_schema.with_info_wrap_validator_function(read, handler.generate_schema(said))


Sources = Annotated[tuple[Source, ...], Field(min_length=1, max_length=20)]


@validated(frozen=True, config=LAZY)
class _Published:
    """What is said of every published file."""

    key: Key = Field(description="short name: head-size, or dgmn2_SIZE")
    dataset: Text = Field(description="what the scores were measured on, or what a backbone was trained on")
    params: Count = Field(description="number of parameters, of a classification head, too")
    licence: Text = Field(description="licence of the weights (SPDX)")
    paper: Text = Field(description="URL of the paper")
    sources: Sources = Field(description="where the file can be had, in the order tried")
    size: Count | None = Field(description="bytes of the file; null if not published")
    sha256: Sha256 | None = Field(description="hash of the file; null if not published")

    @property
    def size_limit(self) -> int:
        """Bytes the file may have."""
        return self.size or self.params * BYTES_PER_PARAM + OVERHEAD


@validated(frozen=True, config=LAZY)
class ZooEntry(_Published):
    """One published segmentor: where its weights are, what they score, what they cost."""

    config: FileName = Field(description="the published configuration's name, without .py")
    head: Text = Field(description="decode head as published, such as SETR-PUP")
    backbone: Key = Field(description="key of the ImageNet backbone its training starts from")
    iters: Annotated[StrictInt, Field(ge=1, le=10**9)] = Field(description="published training iterations")
    protocol: Literal["paper", "native"] = Field(description="inference protocol of the scores")
    miou: Percent | None = Field(description="mean IoU in percent, single scale; null if none is published")
    miou_ms_flip: Percent | None = Field(description="mean IoU in percent, six scales and flips")
    macs_769: Operations | None = Field(description="multiply-accumulates for one 769x769 window; null if not counted")

    @property
    def file_name(self) -> str:
        """The name a copy of the file gets in a folder of the user's."""
        return f"{self.config}.pth"


@validated(frozen=True, config=LAZY)
class BackboneEntry(_Published):
    """One published ImageNet classification checkpoint, the start of a training."""

    file_name: FileName = Field(description="the published file's name")
    top1: Percent | None = Field(description="published top-1 accuracy in percent; null if none is published")
    macs_224: Operations | None = Field(description="multiply-accumulates for one 224x224 image, as published")


AnyEntry = ZooEntry | BackboneEntry


@validated(frozen=True, config=LAZY)
class Manifest:
    """What zoo.json holds: published models, where their files are, what they score, what they cost."""

    version: Annotated[StrictInt, Field(ge=1, le=1)] = Field(description="format of this file")
    default: Key = Field(description="key of the segmentor meant when none is named")
    segmentors: Annotated[tuple[ZooEntry, ...], Field(min_length=1, max_length=1000)] = Field(
        description="the segmentation models"
    )
    imagenet_backbones: Annotated[tuple[BackboneEntry, ...], Field(max_length=1000)] = Field(
        description="the ImageNet backbones"
    )


@dataclass(frozen=True)
class Zoo:
    """A whole manifest."""

    path: Path  # the file it was read from
    default: str  # key of the segmentor that is meant when none is named
    segmentors: tuple[ZooEntry, ...]  # the segmentation models, in the manifest's order
    backbones: tuple[BackboneEntry, ...]  # the ImageNet backbones, in the manifest's order

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
        if meant := [backbone.key for backbone in self.backbones if wanted in _backbone_names(backbone)]:
            with_it = ", ".join(entry.key for entry in self.segmentors if entry.backbone == meant[0])
            hint = f"It is an ImageNet backbone; models with it: {with_it}."
        why = _reason(name)
        if not why and name.endswith((".toml", ".py")):
            why = "it is neither a published name nor a file here"
        elif not why and Path(name).is_file():
            why = "a configuration file ends with .toml or .py"
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
        """The segmentors that match `pattern`; all if it is empty.

        It is a glob on key or configuration name, or else a part of key, configuration name, head or backbone, in any
        letter case.
        """
        wanted = pattern.lower()
        if any(character in wanted for character in "*?["):
            globbed = [(entry, (entry.key, entry.config)) for entry in self.segmentors]
            return tuple(e for e, names in globbed if any(fnmatch.fnmatchcase(n.lower(), wanted) for n in names))
        named = [(entry, (entry.key, entry.config, entry.head, entry.backbone)) for entry in self.segmentors]
        return tuple(e for e, names in named if any(wanted in n.lower() for n in names))


def _stem(name: str) -> str:
    """`name` in lower case without a configuration file's ending; empty if it cannot be a model name."""
    if len(name) > NAME_LIMIT or not name.isprintable():
        return ""
    return re.sub(r"\.(py|toml)$", "", name.lower())


def _reason(name: str) -> str:
    if not name:
        return "the name is empty"
    if len(name) > NAME_LIMIT:
        return f"the name has {len(name)} characters, {NAME_LIMIT} are allowed"
    if not name.isprintable():
        return "the name holds control characters"
    return ""


def _backbone_names(entry: BackboneEntry) -> tuple[str, ...]:
    key = entry.key.lower()
    return key, key.rsplit("_", 1)[-1], key.replace("_", "-"), entry.file_name.lower()


def _suggestion(wanted: str, names: list[str]) -> str:
    """The names that hold `wanted`, else those spelt nearly so, as a question; empty if there is none."""
    if not wanted:
        return ""
    near = [name for name in names if wanted in name.lower()][:4]
    near = near or difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
    return f"Did you mean {', '.join(near)}?" if near else ""


def load_zoo(path: str | Path | None = None) -> Zoo:
    """The manifest at `path`, or the one that came with the package.

    Raises:
        ConfigError: unreadable or wrong; every fault is named by its place in the file.
        ResourceError: the file may not be read, or the installation lacks it.
    """
    return _read(Path(path)) if path is not None else _published()


@lru_cache(maxsize=1)
def _published() -> Zoo:
    return _read(resources.zoo_path())


@lru_cache(maxsize=1)
def manifest_adapter() -> TypeAdapter[Manifest]:
    """What checks a manifest, and gives its JSON schema."""
    return TypeAdapter(Manifest)


def _read(path: Path) -> Zoo:
    what = "cannot use the zoo manifest"
    text = read_text(path, MANIFEST_LIMIT, what, kind=ConfigError, hint=WAY_OUT)
    try:
        document, faults = parse_json(text)
    except ValueError as error:
        raise ConfigError(what, where=path, why=str(error), hint=WAY_OUT) from error
    manifest = check(manifest_adapter(), document, context=path.parent)
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
    entries = document.get(group) if isinstance(document, dict) else None
    return {
        f"{group}[{index}].{name}": entry[name]
        for index, entry in enumerate(entries if isinstance(entries, list) else ())
        for name in ("key", "config", "backbone")
        if isinstance(entry, dict) and isinstance(entry.get(name), str)
    }
