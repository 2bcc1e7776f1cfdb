"""From a name or a file to a checked configuration: where it lies, its bases, its text, values that replace its own."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from dgmn2cli import resources
from dgmn2cli.config import schema
from dgmn2cli.config.mmcv import read_mmcv_file, read_mmcv_text
from dgmn2cli.config.mmcv.map import map_config
from dgmn2cli.config.mmcv.node import Mapped
from dgmn2cli.config.schema import SECTIONS, WRONG, Config, defaults
from dgmn2cli.config.text import read_config_text
from dgmn2cli.errors import ConfigError, Dgmn2Error
from dgmn2cli.files import absence
from dgmn2cli.validation import MAX_DOTS, MAX_HINTS, Fault, check, near_miss, parse_toml, raise_faults, short, show

MAX_FILES = 32  # a file and all its bases
MAX_BASES = 8  # a base of a base of ...
MAX_OVERRIDE = 100_000  # characters
SUFFIXES = (".toml", ".py")
OVERRIDE = "--set"
_HINT = "`dgmn2 config list` shows every setting; the files under configs/ show the published ones."


def load_config(source: str | Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> Config:
    """The configuration behind a published name or a file, other values put in, everything checked.

    Args:
        source: one of the 16 published names (with or without `.py`), or the path of a native `.toml` file or of a
            `.py` file in the mmcv language. Files in that language are read, never executed.
        overrides: settings as text, such as `optim.lr=5e-5`; values as in TOML, texts may stand without quotes.
            They come last.
        values: settings by dotted key, such as `{"optim.lr": 5e-5}`.

    Raises:
        ConfigError: no such name or file, or faults in it; `faults` has a line for each, with file and key.
        ResourceError: the installation lacks its configurations, or the file may not be read.
    """
    path = _locate(source)
    draft = _Draft(_stem(path))
    if path.suffix == ".py":
        draft.take_mapped(map_config(read_mmcv_file(path)), path.name)
    else:
        _read_native(draft, path)
    return draft.finish(overrides, values or {}, where=path)


def load_config_text(text: str, name: str) -> Config:
    """The configuration in a text, such as a checkpoint holds.

    Args:
        text: the configuration, in the mmcv language; read, never executed.
        name: what it is called in messages, and the configuration's name; where it ends in `.toml`, the text is native.

    Raises:
        ConfigError: faults in it; `faults` has a line for each.
    """
    draft = _Draft(_stem(Path(name)))
    if name.endswith(".toml"):
        _take_document(draft, _parse(draft, lambda: text, name, top=True), name, top=True)
    else:
        draft.take_mapped(map_config(read_mmcv_text(text, name)), name)
    return draft.finish((), {}, where=name)


def published_names() -> tuple[str, ...]:
    """The names of the configurations that came with the package, sorted.

    Raises:
        ResourceError: the installation lacks them.
    """
    return tuple(sorted(path.stem for path in resources.config_dir().glob("*.toml")))


@dataclass
class _Draft:
    """A configuration before it is checked: each setting's last value by dotted key, and the file that said it."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, origin: str) -> None:
        self.values[key], self.origins[key] = value, origin

    def put_known(self, key: str, value: Any, origin: str) -> None:
        """A value whose key must be a setting's."""
        if key == "name" or key in defaults():
            self.put(key, value, origin)
        else:
            self.faults.append(f"{origin}: {short(key)}: unknown key{_nearest(key)}")

    def put_text(self, text: str) -> None:
        """`section.key=value`: the value as in TOML; a text setting takes it as it stands."""
        key, equals, given = (part.strip() for part in text.partition("="))
        if not equals or not key:
            self.faults.append(f"{OVERRIDE}: {show(text)}, wanted SECTION.KEY=VALUE, such as optim.lr=5e-5")
            return
        value = _toml_value(given)
        self.put_known(key, given if schema.is_text(key) and not isinstance(value, str) else value, OVERRIDE)

    def take_mapped(self, mapped: Mapped, label: str) -> None:
        """What the reader of mmcv files understood becomes settings, its complaints faults."""
        for key, value in mapped.values.items():
            self.put(key, value, f"{label}: {mapped.origins[key]}")
        self.notes += mapped.notes
        self.faults += [f"{label}: {fault}" for fault in mapped.faults]

    def finish(self, overrides: Sequence[str], given: Mapping[str, Any], where: object) -> Config:
        """Puts in the other values, checks everything, and makes the configuration."""
        for key, value in given.items():
            self.put_known(key, value, "settings")
        for text in overrides:
            self.put_text(text)
        document: dict[str, Any] = {"name": self.name, "notes": self.notes}
        for key, value in self.values.items():
            section, dot, name = key.partition(".")
            if dot:
                document.setdefault(section, {})[name] = value
            else:
                document[key] = value
        checked = check(schema.adapter(), document)
        faults = checked if isinstance(checked, list) else []
        values = self._good({fault.key for fault in faults}) if isinstance(checked, list) else schema.flat(checked)
        self.faults += [self._line(fault) for fault in (*faults, *schema.check_rules(values))]
        if self.faults and all(fault.startswith(f"{OVERRIDE}: ") for fault in self.faults):
            where = ""  # not the file, which may be a published one
        if self.faults or isinstance(checked, list):
            raise_faults(WRONG, self.faults, where, _HINT)
        return checked

    def _good(self, wrong: set[str]) -> dict[str, Any]:
        """Every setting's value but the wrong ones, for the rules between settings."""
        good = {key: value for key, value in {**defaults(), **self.values}.items() if key not in wrong}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in good.items()}

    def _line(self, fault: Fault) -> str:
        """A fault with the file that said the setting, or one of the settings it clashes with."""
        section, _, name = fault.key.partition(".")
        lost = section in SECTIONS and fault.key not in defaults() and "did you mean" not in fault.text
        home = home_of(name) if lost else ""
        said = next((self.origins[key] for key in (fault.key, *fault.others) if key in self.origins), "")
        return f"{said}: {fault}{home}" if said else f"{fault}{home}"


def home_of(key: str) -> str:
    """In words, the section that a key in the wrong one belongs to."""
    homes = (section for section in SECTIONS if f"{section}.{key}" in defaults())
    return next((f"; it belongs in [{section}]" for section in homes), "")


def _nearest(key: str) -> str:
    """A hint at the setting an unknown dotted key may mean."""
    section, _, name = key.partition(".")
    if exact := next((other for other in defaults() if other.partition(".")[2] in (name, key)), ""):
        return f"; did you mean '{exact}'?"
    return near_miss(key, [other for other in defaults() if section not in SECTIONS or other.startswith(f"{section}.")])


def _toml_value(text: str) -> Any:
    """One TOML value; what is none stays text, which the check of the setting's type then shows."""
    if text.count(".") > MAX_DOTS or len(text) > MAX_OVERRIDE:
        return text
    try:
        document = parse_toml(f"value = {text}")
    except ValueError:
        return text
    return document["value"] if list(document) == ["value"] else text


def is_path(name: str) -> bool:
    """A name with a folder in it, or of a file that is here; `fpn_..._cityscapes.py` alone is a published name."""
    plausible = name.endswith(SUFFIXES) and name.isprintable() and len(name) < 4096
    return plausible and ("/" in name or os.path.isfile(name))


def _locate(source: str | Path) -> Path:
    text = str(source)
    if not text.strip() or len(text) > 4096 or "\0" in text:
        _refuse(text, "wanted a published name or the path of a .toml or .py file")
    path = Path(source)
    if isinstance(source, Path) or "/" in text or (path.suffix in SUFFIXES and os.path.isfile(text)):
        if path.suffix not in SUFFIXES:
            there = f"its name ends in {show(path.suffix)}, wanted '.toml' or '.py'"
            _refuse(text, there if os.path.isfile(path) else absence(path))
        return path
    name = re.sub(r"\.(py|toml)$", "", text)
    names = published_names()
    if name not in names:
        close = difflib.get_close_matches(name[:120].lower(), names, n=1, cutoff=0.45)
        hint = f"Did you mean '{close[0]}'?" if close else "`dgmn2 zoo list` shows the published ones."
        _refuse(text, "neither a published name nor a file here", hint)
    return resources.config_dir() / f"{name}.toml"


def _refuse(source: str, why: str, hint: str = "") -> NoReturn:
    shown = source if len(source) <= 120 else source[:120] + "..."
    raise ConfigError("no such configuration", where=shown or "empty name", why=why, hint=hint, faults=[why])


def _stem(path: Path) -> str:
    """A file's name without its suffix, made fit to be a configuration's name."""
    stem = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in path.stem)[: schema.MAX_NAME]
    return stem if stem.strip(". ") else "config"


def _read_native(draft: _Draft, path: Path) -> None:
    count = 0

    def visit(path: Path, label: str, chain: tuple[str, ...]) -> None:
        nonlocal count
        count += 1
        real = os.path.realpath(path)
        if real in chain:
            draft.faults.append(f"{label}: base: the files name each other in a circle")
        elif len(chain) >= MAX_BASES or count > MAX_FILES:
            draft.faults.append(f"{label}: base: more than {MAX_BASES} levels or {MAX_FILES} files of bases")
        else:
            document = _parse(draft, partial(read_config_text, path), label, top=not chain)
            for base in _bases(draft, document, path, label):
                visit(base, _label(base), (*chain, real))
            _take_document(draft, document, label, top=not chain)

    visit(path, _label(path), ())


def _label(path: Path) -> str:
    """A file as messages name it: with its folder where that is `recipes`."""
    return f"{path.parent.name}/{path.name}" if path.parent.name == "recipes" else path.name or str(path)


def _parse(draft: _Draft, read: Callable[[], str], label: str, *, top: bool) -> dict[str, Any]:
    """The document in a native text; empty, with a fault noted, where it cannot be parsed."""
    try:
        return parse_toml(read())
    except ValueError as error:
        draft.faults.append(f"{label}: {error}")
    except Dgmn2Error as error:
        if top:
            raise
        draft.faults.append(f"{label}: {error.why}")
    return {}


def _bases(draft: _Draft, document: dict[str, Any], path: Path, label: str) -> list[Path]:
    """The files named under `base`, which is taken out of the document."""
    named = document.pop("base", [])
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() and name for name in names):
        draft.faults.append(f"{label}: base: {show(named)}, wanted a recipe's name or path, or a list of them")
        return []
    return [_base_path(name, path.parent) for name in names]


def _base_path(name: str, folder: Path) -> Path:
    """A path is relative to the file that says it; a bare word is a published configuration or recipe."""
    if "/" in name or name.endswith(".toml"):
        return folder / name
    published = resources.config_dir() / f"{name}.toml"
    return published if published.is_file() else resources.config_dir() / "recipes" / f"{name}.toml"


def _take_document(draft: _Draft, document: dict[str, Any], label: str, *, top: bool) -> None:
    """One file's settings replace those of its bases; name and notes count in the file itself only."""
    for section, table in document.items():
        if section in ("name", "notes"):
            if top:
                draft.put(section, table, label)
        elif section not in SECTIONS:
            kind = "section" if isinstance(table, dict) else "key"
            few = len(draft.faults) < MAX_HINTS
            near = home_of(section) or (near_miss(section, [*SECTIONS, "base", "name"]) if few else "")
            draft.faults.append(f"{label}: {short(section)}: unknown {kind}{near}")
        elif not isinstance(table, dict):
            draft.faults.append(f"{label}: {section}: {show(table)}, wanted a table: [{section}]")
        else:
            for key, value in table.items():
                draft.put(f"{section}.{key}", value, label)
