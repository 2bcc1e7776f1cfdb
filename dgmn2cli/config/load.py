"""Owns the way from a name or a file to a checked configuration: where it lies, its bases, its text."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dgmn2cli import resources
from dgmn2cli.config.draft import MAX_DOTS, Draft, home_of, short
from dgmn2cli.config.fields import MAX_HINTS, near_miss, show
from dgmn2cli.config.files import Unreadable, read_text, refuse
from dgmn2cli.config.mmcv import read_mmcv_file, read_mmcv_text
from dgmn2cli.config.mmcv.map import map_config
from dgmn2cli.config.mmcv.node import Mapped
from dgmn2cli.config.schema import MAX_NAME, SECTIONS, Config, name_fault
from dgmn2cli.errors import ConfigError

MAX_FILES = 32  # a file and all its bases
MAX_BASES = 8  # a base of a base of ...
SUFFIXES = (".toml", ".py")


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration behind a published name or a file, overrides applied, everything checked.

    Args:
        source: one of the 16 published names (with or without `.py`), or the path of a native `.toml` file or of a
            `.py` file in the mmcv language. Files in that language are read, never executed.
        overrides: settings such as `optim.lr=5e-5`; values as in TOML, texts may stand without quotes.

    Raises:
        ConfigError: no such name or file, or faults in it; `faults` has a line for each, with file and key.
        ResourceError: the installation lacks its configurations.
    """
    path = _locate(source)
    draft = Draft(_stem(path))
    if path.suffix == ".py":
        _take_mapped(draft, map_config(read_mmcv_file(path)), path.name)
    else:
        _read_native(draft, path)
    return draft.finish(overrides, where=path)


def load_config_text(text: str, name: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a text of the mmcv language, such as a published checkpoint's `meta` holds.

    Args:
        text: the configuration; read, never executed.
        name: what it is called in messages, and the configuration's name.
        overrides: as for `load_config`.

    Raises:
        ConfigError: faults in it; `faults` has a line for each.
    """
    draft = Draft(_stem(Path(name)))
    _take_mapped(draft, map_config(read_mmcv_text(text, name)), name)
    return draft.finish(overrides, where=name)


def published_names() -> tuple[str, ...]:
    """The names of the configurations that came with the package, sorted.

    Raises:
        ResourceError: the installation lacks them.
    """
    return tuple(sorted(path.stem for path in resources.config_dir().glob("*.toml")))


def _locate(source: str | Path) -> Path:
    """The file a name or path stands for."""
    text = str(source)
    if not text.strip() or len(text) > 4096 or "\0" in text:
        _refuse(text, "wanted a published name or the path of a .toml or .py file")
    path = Path(source)
    if isinstance(source, Path) or "/" in text or (path.suffix in SUFFIXES and os.path.isfile(text)):
        if path.suffix not in SUFFIXES:
            _refuse(text, f"its name ends in {show(path.suffix)}, wanted '.toml' or '.py'")
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
    stem = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in path.stem)[:MAX_NAME]
    return stem if not name_fault(stem) else "config"


def _take_mapped(draft: Draft, mapped: Mapped, label: str) -> None:
    """What the reader of mmcv files understood becomes settings, its complaints faults."""
    for key, value in mapped.values.items():
        draft.put(key, value, f"{label}: {mapped.origins[key]}")
    draft.notes += mapped.notes
    draft.faults += [f"{label}: {fault}" for fault in mapped.faults]


def _read_native(draft: Draft, path: Path) -> None:
    """Reads a native file and its bases into the draft, bases first."""
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
            document = _parse_toml(draft, path, label, top=not chain)
            for base in _bases(draft, document, path, label):
                visit(base, _label(base), (*chain, real))
            _take_document(draft, document, label, top=not chain)

    visit(path, _label(path), ())


def _label(path: Path) -> str:
    """A file as messages name it: with its folder where that is `recipes`."""
    return f"{path.parent.name}/{path.name}" if path.parent.name == "recipes" else path.name or str(path)


def _parse_toml(draft: Draft, path: Path, label: str, *, top: bool) -> dict[str, Any]:
    """The document in a native file; empty, with a fault noted, where it cannot be parsed."""
    try:
        text = read_text(path)
        dotted = next((number for number, line in enumerate(text.split("\n"), 1) if line.count(".") > MAX_DOTS), 0)
        if dotted:
            raise Unreadable(f"line {dotted} has more than {MAX_DOTS} dots")
        return tomllib.loads(text)
    except Unreadable as error:
        if top:
            refuse(path, error)
        draft.faults.append(f"{label}: {error}")
    except RecursionError:
        draft.faults.append(f"{label}: it is nested too deeply")
    except ValueError as error:  # tomllib.TOMLDecodeError, and an integer of thousands of digits
        draft.faults.append(f"{label}: not TOML: {error}")
    return {}


def _bases(draft: Draft, document: dict[str, Any], path: Path, label: str) -> list[Path]:
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


def _take_document(draft: Draft, document: dict[str, Any], label: str, *, top: bool) -> None:
    """One file's settings replace those of its bases; name and notes count in the file itself only."""
    for section, table in document.items():
        if section in ("name", "notes"):
            if top:
                draft.put(section, table, label)
        elif section not in SECTIONS:
            kind = "section" if isinstance(table, dict) else "setting"
            few = len(draft.faults) < MAX_HINTS
            near = home_of(section) or (near_miss(section, [*SECTIONS, "base", "name"]) if few else "")
            draft.faults.append(f"{label}: {short(section)}: unknown {kind}{near}")
        elif not isinstance(table, dict):
            draft.faults.append(f"{label}: {section}: {show(table)}, wanted a table: [{section}]")
        else:
            for key, value in table.items():
                draft.put(f"{section}.{key}", value, label)
